"""Pretrain a tiny CLIP on drawn faces and sentences about their movements.

It is CLIP's training (Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021, section 2 and figure 3) at the size of a toy: symmetric cross-entropy over
the cosines of a batch of pairs, with a learned temperature. Faces, people and captions are those of
:mod:`dfer_dist.demo.captions`; nothing of the demo's clips or labels is read. The result is
`model.pretrained=demo` of the backbone ``tiny``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save
from torch import Tensor, nn

from dfer_dist.demo.captions import Person, draw_person
from dfer_dist.demo.faces import RENDERER
from dfer_dist.models.towers.open_clip_models import build_clip, clip_config
from dfer_dist.models.towers.text import TextTower
from dfer_dist.utils.files import atomic_path
from dfer_dist.utils.process_pool import Advance, Progress, run_jobs

# Side of the frames, pixels.
SIZE = 64
# Threads of torch: they change the last bits of sums, and two are hardly faster on small towers.
THREADS = 1
# Log of the largest scale of the logits, as CLIP's (section 2.5 of the paper).
HIGHEST_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on, besides versions of libraries and the processor."""

    people: int = 2000
    frames: int = 8  # of each person
    captions: int = 4  # of each frame, taken in turn
    epochs: int = 16
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05  # share of the steps
    seed: int = 0


class Pairs:
    """Frames uint8 [N, 3, size, size] and K captions of each.

    Attributes
    ----------
    vocabulary : int64 [V]
        Ids of all tokens that occur, in order.
    tokens : int32 [N, K, L]
        Positions in ``vocabulary``, zeros after the end token, which is the last of ``vocabulary``.
    """

    def __init__(
        self, recipe: Recipe, workers: int | None = None, progress: Progress | None = None
    ) -> None:
        tokenizer = SimpleTokenizer()
        jobs = [(number, recipe) for number in range(recipe.people)]
        people = run_jobs(_draw_person, jobs, recipe.people, workers, progress)
        rows = [
            [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
            for person in people
            for own in person.captions
            for text in own
        ]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int32)
        # 0 is a token too, so zeros stay zeros.
        self.vocabulary, positions = tokens.unique(return_inverse=True)
        frames = torch.from_numpy(np.concatenate([person.frames for person in people]))
        self.frames = frames.permute(0, 3, 1, 2).contiguous()
        self.tokens = positions.int().unflatten(0, (-1, recipe.captions))

    def batches(self, epoch: int, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield frames [B, 3, H, W], half of them mirrored, and int64 tokens [B, L].

        A pure function of the epoch and the recipe.
        """
        rng = np.random.default_rng([recipe.seed, epoch])
        order = torch.from_numpy(rng.permutation(len(self.frames)))
        mirrored = torch.from_numpy(rng.random(len(order)) < 0.5)
        for chosen in order.split(recipe.batch):
            if len(chosen) < recipe.batch:
                # Other pairs are left out in each epoch.
                return
            frames = self.frames[chosen]
            tokens = self.tokens[chosen, epoch % recipe.captions].long()
            frames = torch.where(mirrored[chosen, None, None, None], frames.flip(-1), frames)
            # The end of a text has the highest id.
            yield frames, tokens[:, : int(tokens.argmax(1).max()) + 1]


def _draw_person(job: tuple[int, Recipe], advance: Advance) -> Person:
    number, recipe = job
    person = draw_person(number, recipe.seed, recipe.frames, recipe.captions, SIZE)
    advance(1)
    return person


def pretrain(
    recipe: Recipe, pairs: Pairs, progress: Progress | None = None
) -> tuple[open_clip.CLIP, list[float]]:
    """Train from random weights.

    Parameters
    ----------
    progress
        Called with (steps done, steps in all) after each step.

    Returns
    -------
    CLIP in float32, and the loss of each step in nats; an untrained model has the log of the batch
    """
    losses: list[float] = []
    with _exactly(recipe.seed):
        clip: open_clip.CLIP = build_clip(clip_config("tiny"), SIZE)
        text = TextTower(clip)
        # Tokens that no caption has keep their embedding.
        embedding = nn.Embedding.from_pretrained(
            clip.token_embedding.weight[pairs.vocabulary].detach(), freeze=False
        )
        optimizer = _optimizer(clip, embedding, recipe)
        steps = recipe.epochs * (len(pairs.frames) // recipe.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _rate(step / steps, recipe.warmup)
        )
        for epoch in range(recipe.epochs):
            for frames, tokens in pairs.batches(epoch, recipe):
                caption = F.normalize(text(embedding(tokens), tokens.argmax(1)), dim=-1)
                loss = contrast(_image(clip, frames), caption, clip.logit_scale)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    clip.logit_scale.clamp_(0, HIGHEST_SCALE)
                losses.append(loss.item())
                if progress:
                    progress(len(losses), steps)
        with torch.no_grad():
            clip.token_embedding.weight[pairs.vocabulary] = embedding.weight
    return clip, losses


def _optimizer(clip: open_clip.CLIP, embedding: nn.Embedding, recipe: Recipe) -> torch.optim.AdamW:
    names = {name: p for name, p in clip.named_parameters() if name != "token_embedding.weight"}
    trained = [embedding.weight, *names.values()]
    # No weight decay for norms, biases and the temperature, as in CLIP.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def contrast(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the mean of the cross-entropies of B pairs in both directions (figure 3 of the paper).

    Parameters
    ----------
    image, text : [B, D], normalised
        Row i of one belongs to row i of the other.
    logit_scale : scalar
        Log of 1 / temperature.
    """
    logits = logit_scale.exp() * image @ text.t()
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2


def save_clip(clip: open_clip.CLIP, recipe: Recipe, path: Path) -> None:
    """Write all weights by open_clip's names. The same weights give the same bytes.

    The token embedding, three quarters of the bytes, is rounded to 8 bits (float8 e4m3: steps of
    0.002 around zero, where its start has a deviation of 0.02); all else is float32. The recipe
    is in the header.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in clip.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].to(torch.float8_e4m3fn)
    versions = {"renderer": RENDERER, "threads": THREADS, "torch": torch.__version__}
    made = json.dumps({**asdict(recipe), **versions}, sort_keys=True)
    with atomic_path(path) as temporary:
        # One entry: the order of several is not fixed.
        temporary.write_bytes(save(state, {"recipe": made}))


@contextmanager
def _exactly(seed: int) -> Iterator[None]:
    """Threads, seed, and only operations that repeat to the bit; as before afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # a module whose one attribute type checkers do not see
    filled = memory.fill_uninitialized_memory
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_num_threads(THREADS)
            torch.use_deterministic_algorithms(True)
            # It takes a third of the time, and nothing reads such memory.
            memory.fill_uninitialized_memory = False
            torch.manual_seed(seed)
            yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _rate(done: float, warmup: float) -> float:
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _image(clip: open_clip.CLIP, frames: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return F.normalize(clip.visual((frames.float() / 255 - mean) / std), dim=-1)
