"""GPUs that train together, what a rank holds in each way of training, and how long a step takes: on paper.

Nothing is loaded or timed. What a rank holds is counted as `instil.train` holds it: weights, gradients and AdamW's two
moments in float32, which is 16 bytes for each number that is trained; with ``train.precision=bf16`` besides a copy in
bfloat16 of every weight that a product reads. With DDP each rank holds all of it, and the buckets by which gradients go
are the gradients (``gradient_as_bucket_view``). With FSDP2 each rank holds its share of weights, gradients and moments,
and gathers a block while it computes it; gradients are added up in float32 (Rajbhandari et al., 2020, arXiv 1910.02054;
Zhao et al., 2023, arXiv 2304.11277).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from instil.errors import SettingsError
from instil.model.spec import DecoderSpec
from instil.recipes.plan.activations import head_bytes, kept_bytes, working_bytes
from instil.recipes.plan.operations import Operations, of_token
from instil.recipes.plan.sizes import FLOAT, Part, Sizes

EFFICIENCY = 0.35
"""The share of a GPU's peak that a step's counted operations reach (model FLOPs utilisation), unless another is given.

Published: Llama 3.1 8B with FSDP2 on 8 H100, 6,258 tokens a second on each (Liang et al., 2024, TorchTitan, arXiv
2410.06511), which is 33 % of 989 TFLOP/s by the operations counted here, and 37 % where attention counts tokens that it
does not see, too; 38 to 43 % for Llama 3 405B on 8,192 to 16,384 H100 (Grattafiori et al., 2024, arXiv 2407.21783).
"""
PEAK = {"bf16": 312.0, "fp32": 19.5}
"""TFLOP/s of an A100 without sparsity, by ``train.precision`` (NVIDIA's data sheet); an H100 has 989 and 67."""
LINK = {"node": 300.0, "nodes": 25.0}
"""GB/s that a GPU sends while it receives as much: NVLink of an A100 within a node, 200 Gb/s for each between nodes."""
OTHERS = 1_500_000_000  # bytes of CUDA's context, the libraries' workspaces and NCCL's buffers: a round figure
USABLE = 0.95  # of the memory; the rest goes to gaps between blocks of the allocator
BLOCKS_GATHERED = 2  # the one that is computed, and the next
GATHERS_NARROW = True
"""Whether FSDP2 gathers the linear layers of blocks as products read them (`MixedPrecisionPolicy` in bfloat16).

Without a policy it gathers float32, and autocast's copies stay whole on each rank until backward has read them.
"""
UNITS = {"MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30, "TB": 10**12, "TIB": 2**40}
LARGEST = {"gpus": 1024, "nodes": 100_000}

Shard = Literal["", "no", "full"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many ``nodes`` of so many ``gpus`` with ``memory`` bytes each.

    ``tflops`` is the peak of one and ``efficiency`` the share of it that is reached; ``link`` is the GB/s that each
    sends while it receives as much.
    """

    gpus: int
    nodes: int
    memory: int
    tflops: float
    efficiency: float
    link: float

    @property
    def ranks(self) -> int:
        """Processes that train together, one for each GPU."""
        return self.gpus * self.nodes

    @property
    def usable(self) -> int:
        """Bytes of a GPU that a plan may fill."""
        return int(USABLE * self.memory)


def cluster_of(
    gpus: int,
    memory: str,
    precision: str,
    *,
    nodes: int = 1,
    tflops: float | None = None,
    efficiency: float = EFFICIENCY,
    link: float | None = None,
) -> Cluster:
    """A cluster as the command line has it.

    Raises:
        SettingsError: a number is none that can be meant.
    """
    for name, count in (("gpus", gpus), ("nodes", nodes)):
        if not 1 <= count <= LARGEST[name]:
            raise SettingsError(f"--{name} {count}: wanted a whole number from 1 to {LARGEST[name]:,}")
    if not 0 < efficiency <= 1:
        raise SettingsError(
            f"--efficiency {efficiency:g}: wanted the share of the peak that is reached, above 0 and at most 1"
        )
    for name, given in (("gpu-tflops", tflops), ("gpu-link", link)):
        if given is not None and not 0 < given < 1e6:
            raise SettingsError(f"--{name} {given:g}: wanted a number above 0")
    return Cluster(
        gpus,
        nodes,
        size_of(memory),
        PEAK[precision] if tflops is None else tflops,
        efficiency,
        LINK["nodes" if nodes > 1 else "node"] if link is None else link,
    )


def size_of(text: str) -> int:
    """Bytes of a size as people write it.

    >>> size_of("80GB"), size_of("24 GiB"), size_of("0.5tb")
    (80000000000, 25769803776, 500000000000)

    Raises:
        SettingsError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if not UNITS["MB"] <= size <= 1000 * UNITS["TB"]:
        raise SettingsError(f"--gpu-memory {text}: wanted the memory of one GPU with its unit, such as 80GB or 24GiB")
    return size


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes that one rank holds at its peak, by what they are for.

    ``copies`` are weights in bfloat16 for products, ``communication`` what FSDP2 gathers and what it adds up.
    """

    weights: int
    copies: int
    gradients: int
    moments: int
    activations: int
    head: int
    communication: int
    others: int = OTHERS

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Way:
    """A way of training: what is trained, how it lies on the ranks, and whether activations are made again.

    ``method`` and ``base`` are ``train.method`` and ``lora.base``; ``shard`` is ``"no"`` (DDP), ``"full"`` (FSDP2), or
    empty for one GPU.
    """

    method: str
    base: str
    shard: Shard
    checkpointing: bool

    @property
    def name(self) -> str:
        """As a table has it.

        >>> Way("lora", "nf4", "no", True).name
        'lora, nf4, DDP, checkpointing'
        """
        base = "" if self.base == "fp32" else self.base
        how = {"": "one GPU", "no": "DDP", "full": "FSDP2"}[self.shard]
        return ", ".join(filter(None, (self.method, base, how, "checkpointing" if self.checkpointing else "")))


@dataclass(frozen=True, slots=True)
class Rows:
    """What a step computes: ``batch`` rows of all ranks together, at most ``longest`` tokens each and ``mean`` ones.

    ``supervised`` is the share of tokens that are predicted. A row of preferences is ``sequences`` sequences.
    """

    batch: int
    longest: int
    mean: float
    supervised: float = 1.0
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """What became of a way on a cluster: what a rank holds with ``micro_batch`` rows at once, and a step's seconds.

    Where not even a row fits, ``fits`` is false and ``parts`` are those of one row. ``tokens`` are those of a step, and
    ``pass_tokens`` those that a rank computes at once, in rows of mean length.
    """

    way: Way
    fits: bool
    parts: Parts
    micro_batch: int
    accumulation: int
    compute_seconds: float
    link_seconds: float
    tokens: float
    pass_tokens: float

    @property
    def seconds(self) -> float:
        """Of a step: computing and sending go on side by side, and the longer of the two counts."""
        return max(self.compute_seconds, self.link_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens / self.seconds

    @property
    def bound(self) -> str:
        """What a step waits for."""
        return "computing" if self.compute_seconds >= self.link_seconds else "the network"


def fit(
    way: Way, cluster: Cluster, spec: DecoderSpec, sizes: Sizes, rows: Rows, *, narrow: int, micro_batch: int = 0,
    clip: bool = False,
) -> Fit:  # fmt: skip
    """The largest micro-batch (a power of two, or all that a rank has) with which a way fits, and its time.

    Args:
        way: the way.
        cluster: the GPUs.
        spec: the decoder's shape.
        sizes: the decoder as the way trains it.
        rows: what a step computes.
        narrow: bytes of the numbers that products make: 2 with bf16, else 4.
        micro_batch: rows at once that are wanted, whether or not they fit; 0: the most that fit.
        clip: whether the gradient is clipped, so that all of it is held.
    """
    own = -(-rows.batch // cluster.ranks)  # rows of a rank
    tried = [min(micro_batch, own)] if micro_batch else [own, *(2**n for n in range(20, -1, -1) if 2**n < own)]
    for count in tried:
        parts = held(
            way, cluster, spec, sizes, count * rows.sequences * rows.longest, narrow, waits=clip or count < own
        )
        if parts.total <= cluster.usable:
            break
    steps = -(-own // count)
    operations = of_token(spec, sizes, round(rows.mean), rows.supervised, checkpointing=way.checkpointing)
    tokens = rows.batch * rows.sequences * rows.mean
    return Fit(
        way,
        parts.total <= cluster.usable,
        parts,
        count,
        steps,
        compute_seconds=compute_seconds(operations, tokens / rows.batch * own, cluster),
        link_seconds=sent_bytes(way, cluster, sizes, steps, narrow) / (cluster.link * 1e9),
        tokens=tokens,
        pass_tokens=count * rows.sequences * rows.mean,
    )


def held(
    way: Way, cluster: Cluster, spec: DecoderSpec, sizes: Sizes, tokens: int, narrow: int, *, waits: bool
) -> Parts:
    """What a rank holds while it computes so many tokens at once; ``waits`` if all gradients wait for one another."""
    ranks = cluster.ranks if way.shard == "full" else 1
    products = sizes.blocks.products
    if sizes.adapters and way.checkpointing:
        products = sizes.block.products  # frozen weights are cast anew, block by block
    copied = way.shard != "full" or not GATHERS_NARROW
    copies = narrow * products if narrow < FLOAT and copied else 0
    if sizes.few_bits:
        copies = 2 * FLOAT * sizes.blocks.largest  # whole while it is multiplied by, and on the way there
    whole = waits or way.shard != ""
    shared = gathered_bytes(sizes.blocks, FLOAT, few_bits=sizes.few_bits) + FLOAT * sizes.outside.all  # not buffers
    return Parts(
        weights=sizes.bytes - shared + shared // ranks,
        copies=copies,
        gradients=FLOAT * (sizes.trained if whole else sizes.largest_gradient) // ranks,
        moments=2 * FLOAT * sizes.trained // ranks,
        activations=kept_bytes(spec, sizes, tokens, narrow, checkpointing=way.checkpointing)
        + working_bytes(spec, tokens, narrow),
        head=head_bytes(spec, sizes, tokens, narrow),
        communication=_gathered(sizes, narrow) if way.shard == "full" else 0,
    )


def gathered_bytes(part: Part, narrow: int, *, few_bits: bool = False) -> int:
    """Bytes of what FSDP2 gathers of blocks, of weights in few bits as they are held."""
    products = part.codes if few_bits else (narrow if GATHERS_NARROW else FLOAT) * part.products
    return products + FLOAT * (part.all - part.products)


def _gathered(sizes: Sizes, narrow: int) -> int:
    """What FSDP2 holds beside its shares: blocks and the rest whole, a block on its way, and their gradients.

    What stands outside of the blocks (embedding and head) stays whole from forward to the end of backward.
    """
    block, outside = sizes.block, sizes.outside
    weights = (BLOCKS_GATHERED + 1) * gathered_bytes(block, narrow, few_bits=sizes.few_bits) + FLOAT * outside.all
    return weights + FLOAT * (BLOCKS_GATHERED * block.trained + outside.trained)


def compute_seconds(operations: Operations, tokens: float, cluster: Cluster) -> float:
    """Seconds that a rank computes for so many tokens."""
    return operations.all * tokens / (cluster.tflops * 1e12 * cluster.efficiency)


def sent_bytes(way: Way, cluster: Cluster, sizes: Sizes, steps: int, narrow: int) -> float:
    """Bytes that each rank sends for an optimizer step of so many micro-batches.

    DDP adds gradients up once, which is two passes over them. FSDP2 gathers all weights in forward and in backward of
    each micro-batch, and adds up the gradients of each (Rajbhandari et al., 2020, section 7).
    """
    share = (cluster.ranks - 1) / cluster.ranks
    if way.shard == "full":
        gathered = gathered_bytes(sizes.blocks, narrow, few_bits=sizes.few_bits) + FLOAT * sizes.outside.all
        return share * steps * (2 * gathered + FLOAT * sizes.trained)
    return share * FLOAT * 2 * sizes.trained if way.shard else 0.0
