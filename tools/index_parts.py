"""``python tools/index_parts.py``: write vision_lowrank/parts.json anew, as ``make parts`` does."""

from vision_lowrank.config.index import write_index

write_index()
