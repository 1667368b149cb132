"""Multimodal LLMs of transformers: a vision tower, a projector and an LLM behind the backbone protocol.

A picture is seen through c >= 1 square tiles. In the prompt, the tiles of one picture stand before the question::

    <user> tile 1 … tile c, question </user> <assistant> answer

InternVL has them as tiles of one image, inside one <img> … </img>, the other families as c images; the LLM sees gh · gw
tokens of each (LLaVA-OneVision one more, a newline, which is no place in the picture). Attention is causal, so states
at the image tokens depend on no question: :meth:`MultimodalBackbone.image_states` runs a prompt that ends with the last
image token, through the layers that are asked for and no further. ``states after layer l`` are what layer l + 1
receives; in Qwen3-VL, whose first layers are followed by deepstack's addition at the image tokens, with that addition.

``encode_image`` and ``image_tokens`` give the tower alone, before the projector, without class token, in rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.transforms import Preprocess
from ...errors import UserError
from ..base import Tower
from ..image_states import check_tiles, states_after, valid_places
from ..roles import PROBE_TEXTS, SIGNATURE_TEXT, ImageEncoder, LanguageModel
from .families import LLM, Family
from .native import native_places

IGNORED = -100


class MultimodalBackbone(ImageEncoder, LanguageModel):
    """A ``…ForConditionalGeneration`` of one of the six families.

    Attributes:
        family: where the parts of the model are.
        text: the ``PreTrainedTokenizer``; :meth:`tokenizer` calls it.
        native: the library's processor, None where a package that it needs is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        *,
        name: str,
        weights: str | None,
        text: Any,
        native: Any,
        preprocess: Preprocess,
        options: Mapping[str, Any],
    ) -> None:
        self.family, self.text, self.native = family, text, native
        super().__init__(
            model,
            name=name,
            weights=weights,
            towers=[
                _tower(model, "vision", f"model.{family.blocks}", family.split_linears()),
                _tower(model, "llm", f"model.{family.llm}.layers", LLM),
            ],
            preprocess=preprocess,
            embed_dim=family.width(model.config),
            options=options,
        )

    @property
    def processor(self) -> Any:
        """The library's own processor: chat template, native tiling, tokenizer.

        Raises:
            UserError: it needs a package that is not installed.
        """
        if self.native is None:
            raise UserError(
                f"the processor of '{self.name}' needs num2words: "
                'pip install "vision-lowrank[mllm]", or give tiles instead.'
            )
        return self.native

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Compute the mean over the patches of the tower's output: (B, 3, S, S) -> (B, embed_dim)."""
        return self.image_tokens(pixels).mean(1)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Compute the tower's output, patch by patch in rows: (B, 3, S, S) -> (B, (S / p)², embed_dim)."""
        return self.family.patches(self.model, pixels.to(self.model.dtype))

    def probe(self) -> dict[str, Tensor]:
        """Compute the embeddings of two random pictures, and the loss of two answers: through projector and LLM."""
        pixels = self._random_pictures()
        questions = ["What is it?"] * len(pixels)
        answers = self.answer_loss(pixels, [1] * len(pixels), questions, PROBE_TEXTS)
        return {"image": self.encode_image(pixels), "answer": answers}

    def signature(self) -> dict[str, Tensor]:
        """Compute the embeddings of a picture of one wave and of one sentence."""
        tokens = self.tokenizer([SIGNATURE_TEXT]).to(self.model.device)
        return super().signature() | {"text": self.encode_text(tokens)}

    def tokenizer(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (N, L) int64, padded at the right."""
        return _padded([self._ids(text) for text in texts], self.text.pad_token_id, "right", torch.device("cpu"))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Compute the LLM's state at the last token after its final norm: (B, L) int, padded -> (B, state_width).

        It is no partner of ``encode_image``, which has another width: these models have no contrastive embedding.
        """
        mask = tokens != self.text.pad_token_id
        states = self._llm(input_ids=tokens, attention_mask=mask.long())
        return states[torch.arange(len(tokens), device=tokens.device), mask.sum(1).clamp_min(1) - 1]

    @property
    def state_layers(self) -> int:
        """L: layers of the LLM."""
        return len(self.towers["llm"].blocks)

    @property
    def state_width(self) -> int:
        """d: width of the LLM."""
        return self.model.config.text_config.hidden_size

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that the LLM sees of one tile."""
        config = self.model.config
        side = self.preprocess.size // self.family.patch(config) // self.family.merge(config)
        return side, side

    def image_states(self, tiles: Tensor, counts: Sequence[int], layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Compute states as :meth:`ImageEncoder.image_states`, with the LLM's layers; 0 for the projected features.

        States are in the type of the weights.
        """
        inputs = self.inputs(tiles, counts, self.prompts(counts, None))
        blocks = [self.get_submodule(path) for path in self.towers["llm"].blocks]
        states = states_after(blocks, layers, lambda: self._llm(**inputs))
        places = inputs["input_ids"] == self.model.config.image_token_id
        n, extra = self.token_grid[0] * self.token_grid[1], self.family.newline

        def on_grids(state: Tensor) -> Tensor:
            rows = [row[place].unflatten(0, (-1, n + extra)) for row, place in zip(state, places, strict=True)]
            return nn.utils.rnn.pad_sequence([row[:, :n].flatten(0, 1) for row in rows], batch_first=True)

        return [on_grids(state) for state in states], valid_places(counts, n, tiles.device)

    @torch.no_grad()
    def generate(
        self, tiles: Tensor, counts: Sequence[int], prompts: Sequence[str], max_new_tokens: int = 256
    ) -> list[str]:
        """Generate greedy answers to one question per picture; tiles (M, 3, S, S) and counts: :meth:`image_states`.

        Raises:
            UserError: the numbers of tiles, counts and prompts do not fit.
        """
        inputs = self.inputs(tiles, counts, self.prompts(counts, prompts), side="left")
        ends = {"eos_token_id": self.text.eos_token_id, "pad_token_id": self.text.pad_token_id}
        made = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **ends)
        return self.text.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def answer_loss(
        self, tiles: Tensor, counts: Sequence[int], prompts: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Compute the mean cross-entropy of the next token over the tokens of all answers and the one that ends each.

        Arguments are those of :meth:`generate`; `answers` are what it should say. Nothing else has a label.

        Raises:
            UserError: the numbers of tiles, counts, prompts and answers do not fit.
        """
        if len(answers) != len(prompts):
            raise UserError(f"{len(answers)} answers do not fit {len(prompts)} prompts: give one for each.")
        inputs = self.inputs(tiles, counts, self.prompts(counts, prompts), answers)
        labels = inputs.pop("labels")[:, 1:]
        states = self._llm(**inputs)[:, :-1]
        told = labels != IGNORED
        return F.cross_entropy(self.model.lm_head(states[told]).float(), labels[told])

    def prompts(self, counts: Sequence[int], questions: Sequence[str] | None) -> list[str]:
        """Build chats of one question per picture, up to where the answer begins, with every image token.

        Without `questions` they end at the last image token.
        """
        if questions is not None and len(questions) != len(counts):
            raise UserError(f"{len(questions)} prompts do not fit {len(counts)} pictures: give one for each.")
        n = self.token_grid[0] * self.token_grid[1]
        chats = []
        for number, count in enumerate(counts):
            images = 1 if self.family.joined else count
            chat = self.chat("" if questions is None else questions[number], images)
            parts = chat.split(self.family.image)
            chat = self.family.run(n, count).join([*parts[:images], self.family.image.join(parts[images:])])
            chats.append(chat if questions is not None else chat[: chat.rindex(self.family.image)] + self.family.image)
        return chats

    def chat(self, question: str, images: int = 1) -> str:
        """Fill the chat template with `images` images and a question, with one image token for each image."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        source = self.text if self.native is None else self.native
        return source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def inputs(
        self,
        tiles: Tensor,
        counts: Sequence[int],
        chats: Sequence[str],
        answers: Sequence[str] | None = None,
        side: str = "right",
    ) -> dict[str, Tensor]:
        """Build what the library's forward takes: token ids (B, T) padded at `side`, their mask, and the tiles.

        With `answers`, these and an ending follow each chat, and ``labels`` (B, T) hold their ids, -100 elsewhere.

        Raises:
            UserError: tiles of another size or number.
        """
        check_tiles(tiles, counts, self.preprocess.size)
        asked = [self._ids(chat) for chat in chats]
        told = [[]] * len(asked) if answers is None else [[*self._ids(a), self.text.eos_token_id] for a in answers]
        device, pad = tiles.device, self.text.pad_token_id
        ids = _padded([a + b for a, b in zip(asked, told, strict=True)], pad, side, device)
        mask = _padded([[1] * (len(a) + len(b)) for a, b in zip(asked, told, strict=True)], 0, side, device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if answers is not None:
            known = [[IGNORED] * len(a) + b for a, b in zip(asked, told, strict=True)]
            inputs["labels"] = _padded(known, IGNORED, side, device)
        inputs |= self.family.inputs(self.model, tiles.to(self.model.dtype))
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return inputs

    def prepare(self, images: Sequence[Any], texts: Sequence[str], **options: Any) -> dict[str, Tensor]:
        """Prepare model inputs by the processor's own route and tiling: one RGB picture and one question each.

        Args:
            images: PIL images.
            texts: questions.
            options: of the processor's call, such as ``crop_to_patches=False`` for InternVL.

        Raises:
            UserError: the processor needs a missing package, or the numbers differ.
        """
        if len(images) != len(texts):
            raise UserError(f"{len(images)} pictures and {len(texts)} texts: give one text for each picture.")
        chats = [self.chat(text) for text in texts]
        nested = [[image] for image in images]
        inputs = dict(self.processor(images=nested, text=chats, return_tensors="pt", padding=True, **options))
        check_inputs(inputs)
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def token_places(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Find where the image tokens of :meth:`prepare`'s inputs are in their pictures.

        Returns:
            One int64 tensor (n, 3) per picture, n its image tokens in order: tile, row and column on the grid of that
            tile; row and column are -1 for newlines. Tiles are numbered as the processor lays them: the whole picture
            is the last of InternVL and SmolVLM, and the first of LLaVA-OneVision, whose second is all the rest.
        """
        return native_places(self.model.config, self.family, self.token_grid, inputs)

    def _llm(self, **inputs: Tensor) -> Tensor:
        """Compute the last states of the model without its head: (B, T, d)."""
        check_inputs(inputs)
        return self.model.model(**inputs, use_cache=False).last_hidden_state

    def _ids(self, text: str) -> list[int]:
        return self.text(text, add_special_tokens=False)["input_ids"]


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise UserError where Qwen's inputs lack what tells image tokens from text.

    Without it Qwen2-VL and Qwen3-VL fail, and Qwen2.5-VL gives other numbers without a word.
    """
    if "image_grid_thw" in inputs and inputs.get("mm_token_type_ids") is None:
        raise UserError(
            "inputs with image_grid_thw lack mm_token_type_ids, which rotary positions of images need: "
            "keep it from the processor's output."
        )


def _tower(model: nn.Module, name: str, path: str, modules: dict[str, str]) -> Tower:
    count = len(model.get_submodule(path))
    return Tower(name, tuple(f"model.{path}.{index}" for index in range(count)), modules)


def _padded(rows: Sequence[Sequence[int]], value: int, side: str, device: torch.device) -> Tensor:
    """Pad rows of different lengths to one int64 tensor, `value` in front or behind."""
    longest = max(len(row) for row in rows)
    fill = [[value] * (longest - len(row)) for row in rows]
    full = [[*a, *row] if side == "left" else [*row, *a] for row, a in zip(rows, fill, strict=True)]
    return torch.tensor(full, dtype=torch.long, device=device)
