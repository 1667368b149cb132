"""The command line: ``vision-lowrank train | eval | predict | inspect | export | list | new``."""
