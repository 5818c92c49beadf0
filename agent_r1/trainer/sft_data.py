"""Traces as token ids, in an order that is a function of seed and step alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agent_r1.config.sft import SftConfig, SftDataConfig
from agent_r1.data.traces import TRACE_GENERATORS, Author, Trace, read_traces
from agent_r1.errors import ConfigError, DataError
from agent_r1.rollout.codec import Codec
from agent_r1.trainer.sft_chat import chat_segments
from agent_r1.types import Task

GENERATOR = "generator:"
_HOPELESS = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded trace ``[T]``; the mask is True on tokens that the model is to write."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def targets(self) -> int:
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Right-padded examples. What is padding is decided by ``lengths`` alone."""

    token_ids: Tensor  # [B, T] int64
    lengths: Tensor  # [B] int64
    loss_mask: Tensor  # [B, T] bool

    @staticmethod
    def of(examples: Sequence[Example]) -> ExampleBatch:
        ids = [torch.tensor(example.token_ids) for example in examples]
        masks = [torch.tensor(example.loss_mask) for example in examples]
        return ExampleBatch(
            pad_sequence(ids, batch_first=True),
            torch.tensor([len(example) for example in examples]),
            pad_sequence(masks, batch_first=True),
        )


def encode_trace(trace: Trace, codec: Codec) -> Example:
    """Token ids as a rollout of this trace would have produced them.

    Prompt, each of the model's turns and each observation are encoded apart from one
    another, because that is how they meet in a rollout: a tokenizer that would merge
    characters across such a border would otherwise teach contexts that never occur. The
    end-of-sequence token is the model's own last word and is learned.
    """
    segments = trace.segments
    if trace.chat:
        prompt, segments = chat_segments(trace, codec)
        ids = list(codec.encode_text(prompt))
    else:
        ids = list(codec.render(Task("trace", trace.prompt)))
    mask = [False] * len(ids)
    for segment in segments:
        if segment.author is Author.MODEL:
            part = codec.encode_text(segment.text)
        else:
            part = codec.encode_observation(segment.text, control_tokens=bool(trace.chat))
        ids += part
        mask += [segment.author is Author.MODEL] * len(part)
    return Example((*ids, int(codec.tokenizer.eos_token_id)), (*mask, True))


class ExampleSource(Protocol):
    """Examples by step."""

    @property
    def steps_per_epoch(self) -> int | None:
        """``None`` where there is no end."""

    def batch(self, step: int) -> list[Example]:
        """The examples of a step, counted from 0. Steps must be asked for in order, but the
        first one asked for may be any.
        """


class FileExamples:
    """A finite set of examples, shuffled anew in every epoch.

    The last batch of an epoch may be smaller. Order is a function of ``(seed, epoch)``.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, *, seed: int, shuffle: bool = True
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._examples) // self._batch_size)

    def batch(self, step: int) -> list[Example]:
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        chosen = order[number * self._batch_size : (number + 1) * self._batch_size]
        return [self._examples[i] for i in chosen]

    def _order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self._examples)))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self._examples), generator=generator).tolist()
        return order


class StreamExamples:
    """An endless stream of examples; resuming runs it again up to the step."""

    def __init__(self, examples: Iterator[Example], batch_size: int) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._next = 0

    @property
    def steps_per_epoch(self) -> None:
        return None

    def batch(self, step: int) -> list[Example]:
        if step < self._next:
            raise DataError(f"the stream is at step {self._next} and cannot go back to {step}")
        skip = (step - self._next) * self._batch_size
        chosen = list(itertools.islice(self._examples, skip, skip + self._batch_size))
        if len(chosen) < self._batch_size:
            raise DataError(
                f"the trace generator ended before step {step}; it must be endless, or "
                "lower trainer.total_training_steps"
            )
        self._next = step + 1
        return chosen


@dataclass(slots=True)
class Encoded:
    """A count of what happened to the traces of a source, and an encoder that keeps it."""

    codec: Codec
    max_length: int
    overlong: str
    kept: int = 0
    dropped: int = 0

    def examples(self, traces: Iterator[Trace]) -> Iterator[Example]:
        """Encode lazily; overlong traces are dropped and counted, or an error.

        When the first thousand are all too long, the limit is wrong and an endless
        generator would never yield: that is an error as well.
        """
        for number, trace in enumerate(traces):
            example = encode_trace(trace, self.codec)
            if len(example) <= self.max_length:
                self.kept += 1
                yield example
            elif self.overlong == "drop" and (self.kept or self.dropped < _HOPELESS):
                self.dropped += 1
            else:
                raise DataError(
                    f"trace {number} ({trace.source}) has {len(example)} tokens, more than "
                    f"data.max_length={self.max_length}; raise it or set data.overlong=drop"
                )


def training_source(config: SftConfig, codec: Codec) -> tuple[ExampleSource, Encoded]:
    """What ``data.train_files`` names, encoded."""
    data = config.data
    if not data.train_files:
        raise ConfigError("data.train_files is empty; name a JSONL, JSON or Parquet file of traces")
    seed = config.trainer.seed if data.seed is None else data.seed
    encoded = Encoded(codec, data.max_length, data.overlong)
    name = _generator(data.train_files)
    if name is not None and data.train_max_samples is None:
        stream = encoded.examples(_generate(name, {"seed": seed, **data.generator_kwargs}))
        return StreamExamples(stream, data.train_batch_size), encoded
    examples = _finite(
        encoded, data.train_files, {"seed": seed, **data.generator_kwargs}, data.train_max_samples
    )
    source = FileExamples(examples, data.train_batch_size, seed=seed, shuffle=data.shuffle)
    return source, encoded


def validation_examples(data: SftDataConfig, codec: Codec) -> tuple[list[Example], Encoded]:
    """What ``data.val_files`` names, encoded; empty when it names nothing."""
    encoded = Encoded(codec, data.max_length, data.overlong)
    if not data.val_files:
        return [], encoded
    if _generator(data.val_files) is not None and data.val_max_samples is None:
        raise ConfigError(
            "data.val_files names a generator, which has no end; set data.val_max_samples"
        )
    options = {**data.generator_kwargs, **data.val_generator_kwargs}
    return _finite(encoded, data.val_files, options, data.val_max_samples), encoded


def _finite(
    encoded: Encoded, files: Sequence[str], options: Mapping[str, Any], limit: int | None
) -> list[Example]:
    name = _generator(files)
    if name is not None:
        traces = _generate(name, options)
    else:
        traces = itertools.chain.from_iterable(read_traces(file) for file in files)
    examples = list(itertools.islice(encoded.examples(traces), limit))
    if not examples:
        raise DataError(
            f"no usable trace in {', '.join(files)} ({encoded.dropped} are longer than "
            f"data.max_length={encoded.max_length})"
        )
    return examples


def _generator(files: Sequence[str]) -> str | None:
    named = [file for file in files if file.startswith(GENERATOR)]
    if named and len(files) > 1:
        raise ConfigError(f"{named[0]!r} cannot be mixed with other files; name it alone")
    return named[0].removeprefix(GENERATOR) if named else None


def _generate(name: str, options: Mapping[str, Any]) -> Iterator[Trace]:
    return iter(TRACE_GENERATORS.get(name)(**options))
