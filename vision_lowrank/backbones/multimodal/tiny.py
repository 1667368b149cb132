"""Tokenizer, processor and configuration of multimodal LLMs without a download.

The tokenizer is a byte-level BPE without merges: 256 symbols, one per byte, and the special tokens of the family after
them, each by a name that the library's processors read (``tok.image_token``). Texts are long in its tokens, five times
those of a trained vocabulary, but every text has some, and it saves and loads like any other.
"""

from __future__ import annotations

from typing import Any

from .families import Family
from .sizes import Size

_QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_bos_token": "<|vision_start|>",
         "vision_eos_token": "<|vision_end|>"}  # fmt: skip
NAMED = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "smolvlm": {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    },
}  # fmt: skip
ROWS_COLUMNS = 4
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]


def byte_tokenizer(family: Family) -> Any:
    """Build a ``PreTrainedTokenizerFast`` with one token per byte and the special tokens of `family`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    smol = family.model_type == "smolvlm"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<end_of_utterance>" if smol else "<|im_end|>",
        extra_special_tokens=NAMED[family.model_type],
    )
    splits = range(1, ROWS_COLUMNS + 1) if smol else ()
    more = ["<|im_start|>", *(f"<row_{row}_col_{column}>" for row in splits for column in splits)]
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in more], special_tokens=True)
    fast.chat_template = family.template
    return fast


def build_config(size: Size, tokenizer: Any) -> Any:
    """Build the model's configuration, its special ids from `tokenizer`; a tiny model gets its vocabulary too."""
    from transformers import AutoConfig

    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = size.text | ids | {"vocab_size": size.text["vocab_size"] or len(tokenizer)}
    tied = {name: value for name, value in size.top.items() if name == "tie_word_embeddings"}
    named = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMED[size.model_type].items()}
    image = tokenizer.convert_tokens_to_ids(size.family.image)
    top = {"image_token_id": image, "image_token_index": image} if size.model_type == "llava_onevision" else {}
    top |= {"image_token_id": image, "video_token_id": named.get("video_token", image)}
    if size.model_type.startswith("qwen"):
        top |= {"vision_start_token_id": named["vision_bos_token"], "vision_end_token_id": named["vision_eos_token"]}
    return AutoConfig.for_model(
        size.model_type, text_config=text | tied, vision_config=size.vision, **{"pad_token_id": ids["pad_token_id"]},
        **top, **size.top,
    )  # fmt: skip


def build_processor(size: Size, config: Any, tokenizer: Any) -> Any:
    """Build the library's own processor around `tokenizer`, with tiles of the model's size.

    Raises:
        ImportError: SmolVLM's needs the package num2words.
    """
    import transformers as hf

    family, template = size.family, size.family.template
    side, patch = size.tile or family.native(config), family.patch(config)
    square = {"height": side, "width": side}
    count = (side // patch // family.merge(config)) ** 2
    if size.model_type.startswith("qwen"):
        third = size.model_type == "qwen3_vl"
        norm = {"image_mean": HALF, "image_std": HALF} if third else {}
        pixels = {"shortest_edge": (patch * 2) ** 2, "longest_edge": side**2}
        images = hf.Qwen2VLImageProcessor(size=pixels, patch_size=patch, **norm)
        videos = (hf.Qwen3VLVideoProcessor if third else hf.Qwen2VLVideoProcessor)(patch_size=patch, **norm)
        kinds = {
            "qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor, "qwen3_vl": hf.Qwen3VLProcessor
        }  # fmt: skip
        return kinds[size.model_type](images, tokenizer, videos, chat_template=template)
    if size.model_type == "internvl":
        images = hf.GotOcr2ImageProcessor(size=square, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
        videos = hf.InternVLVideoProcessor(size=square)
        return hf.InternVLProcessor(images, tokenizer, videos, image_seq_length=count, chat_template=template)
    if size.model_type == "llava_onevision":
        images = hf.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=config.image_grid_pinpoints)
        return hf.LlavaOnevisionProcessor(
            images, tokenizer, hf.LlavaOnevisionVideoProcessor(size=square), num_image_tokens=count,
            vision_feature_select_strategy="full", chat_template=template,
        )  # fmt: skip
    edge = {"longest_edge": side}
    images = smolvlm_images(side)
    videos = hf.SmolVLMVideoProcessor(size=edge, max_image_size=edge)
    return hf.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=count, chat_template=template)


def smolvlm_images(side: int) -> Any:
    """Build SmolVLM's image processor for tiles of `side` pixels; it splits no pictures unless a call asks for it."""
    from transformers import SmolVLMImageProcessor

    edge = {"longest_edge": side}
    return SmolVLMImageProcessor(
        size=edge, max_image_size=edge, do_image_splitting=False, image_mean=HALF, image_std=HALF
    )
