"""A causal Wan of random weights run block by block, its cache exact and with every preset, in one run.

    python benchmarks/wan.py --save       the 1.3B at 480 x 832 and 180 latent frames, on a GPU; rows go to results/wan.jsonl
    python benchmarks/wan.py --tiny       the same with a small network, on any machine: a rehearsal, not a result
    python benchmarks/wan.py --quality    the tests' tiny checkpoint in float32, anywhere: every block is generated, with every
                                          preset, and compared with the exact cache's
    python benchmarks/wan.py --prompt     cross-attention at the 1.3B's shape over a padded and over a merged prompt, anywhere

At full size only the blocks that are timed are generated: those between are given random latents, which are run once and become
history as generated ones do. A block's time is that of four denoise steps, the pass that commits, and what is encoded then.
Memory is what torch's allocator held at most in each phase. Weights are random, so PSNR, of latents against the exact run's and
relative to their range, only says how far the same dice drift apart; it is no video that anybody would look at.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401  names the package, so that it can be imported
import torch
from comfyui_qvg.benchmarks.rows import conditions, median_ms, report
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig, QVGError
from comfyui_qvg.qvg.attention.prompt import MergedPrompt
from comfyui_qvg.qvg.files import written_whole
from comfyui_qvg.qvg.models.wan import CausalWan, Prompt, WanConfig, WanDenoiser, load_wan
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.sampling import DistilledSchedule, generate
from comfyui_qvg.tests.integration import tiny_wan
from torch import Tensor

VARIANT = VARIANTS["self-forcing"]
CHUNK = VARIANT.frames_per_block
PROMPT_TOKENS = 60
WARM_UP_FRAMES = 36  # the longest span, a sink and a recent block, and one more


class Setup(NamedTuple):
    """What is run. `config` None: the tests' checkpoint. `timed`: numbers of the blocks that are generated, the first is 1; None:
    all."""

    name: str
    config: WanConfig | None
    latent_rows: int
    latent_cols: int
    frames: int
    dtype: torch.dtype
    timed: tuple[int, ...] | None


FULL = Setup("1.3B, 480 x 832", WanConfig.wan_1_3b(), 60, 104, 180, torch.bfloat16, (1, 20, 40, 60))
TINY = Setup("tiny", WanConfig(2, 2, mlp=256, text_channels=64), 8, 12, 60, torch.float32, (1, 20))
QUALITY = Setup("the tests' checkpoint", None, 16, 24, 84, torch.float32, None)
# As every preset keeps what it does not encode: what rounding to 16 bits alone does.
SIXTEEN = "exact, 16 bits"


@dataclass
class Meter:
    """Seconds and peak bytes by phase; a GPU is waited for before and after."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """One more stretch of a phase; times add up until `take`."""
        began = self._now(True)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now(False) - began
        if self.device.type == "cuda":
            self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated(self.device))

    def take(self, name: str) -> float:
        """Seconds of a phase since this was last called."""
        return self.seconds.pop(name, 0.0)

    def _now(self, fresh: bool) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if fresh:
                torch.cuda.reset_peak_memory_stats(self.device)
        return time.perf_counter()


class MeteredDenoiser(WanDenoiser):
    """The product's, with a meter around its two calls."""

    def __init__(self, meter: Meter, model: CausalWan, prompt: Prompt, setup: Setup):
        super().__init__(model, prompt, setup.latent_rows, setup.latent_cols)
        self.meter = meter

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """See `WanDenoiser`."""
        with self.meter.phase("denoise"):
            return super().predict_clean(x, noise_level, cache)

    def commit_clean(self, x: Tensor, cache: KVCache) -> None:
        """See `WanDenoiser`."""
        with self.meter.phase("commit"):
            super().commit_clean(x, cache)


class MeteredCache(KVCache):
    """The product's; what commits and encodes is timed within the pass. Peaks stay the pass's."""

    encode_seconds = 0.0

    def commit_layer(self, layer: int) -> None:
        """See `KVCache`."""
        self._wait()
        began = time.perf_counter()
        super().commit_layer(layer)
        self._wait()
        self.encode_seconds += time.perf_counter() - began

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


@dataclass
class Run:
    """One preset's run. Blocks by their number, the first is 1."""

    cache_bytes: list[int] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    latents: dict[int, Tensor] = field(default_factory=dict)
    exact_bytes: int = 0
    encode_ms: list[float] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)


def run(setup: Setup, model: CausalWan, prompt: Prompt, preset: str, seed: int, verify: bool = True) -> Run:
    """Block after block through the product's loop."""
    config = QVGConfig.preset("exact" if preset == SIXTEEN else preset)
    # As on ComfyUI's path: exact keeps what the network computes, everything else 16 bits.
    dtype = setup.dtype if preset == "exact" else torch.bfloat16
    shape, made = model.config, Run()
    denoiser = MeteredDenoiser(Meter(model.patch_embedding.weight.device), model, prompt, setup)
    spec = shape.cache_spec(setup.latent_rows, setup.latent_cols, CHUNK, 1, dtype)
    with MeteredCache(spec, config, shape.rope(setup.latent_rows, setup.latent_cols)) as cache:
        for number in range(1, setup.frames // CHUNK + 1):
            timed = setup.timed is None or number in setup.timed
            _one_block(denoiser, cache, made, number, timed, seed)
        if verify and config.codec != "none":
            cache.verify_encoded()
    made.peaks, made.exact_bytes = denoiser.meter.peaks, spec.exact_bytes(setup.frames)
    return made


def _one_block(denoiser: MeteredDenoiser, cache: MeteredCache, made: Run, number: int, timed: bool, seed: int) -> None:
    first = (number - 1) * CHUNK
    origins = [(float(first + frame), 0.0, 0.0) for frame in range(CHUNK)]
    schedule = DistilledSchedule(VARIANT.sigmas, seed * 10_000 + number)
    given = [] if timed else [schedule.noise(0, denoiser.block_shape(CHUNK)).to(denoiser.device)]
    spans, cache.encode_seconds = cache.spans_due, 0.0
    block = next(generate(denoiser, cache, [origins], schedule, given, verify=False))
    commit, denoise = denoiser.meter.take("commit"), denoiser.meter.take("denoise")
    made.cache_bytes.append(block.cache.total)
    if cache.spans_due > spans and cache.config.codec != "none":
        made.encode_ms.append(cache.encode_seconds * 1e3)
    if timed:
        made.seconds[number] = denoise + commit
        made.latents[number] = block.latent.float().cpu()


def psnr_db(reference: Run, estimate: Run, last: int | None = None) -> float | None:
    """Of the latents, all of them or the last few blocks, relative to the reference's range; None where both are the same."""
    numbers = sorted(reference.latents)[-last:] if last else sorted(reference.latents)
    a, b = (torch.cat([made.latents[number] for number in numbers], 1).double() for made in (reference, estimate))
    error = (a - b).square().mean()
    return float(20 * (a.max() - a.min()).log10() - 10 * error.log10()) if error > 0 else None


def row(name: str, setup: Setup, runs: list[Run], exact: list[Run]) -> dict[str, Any]:
    """What one preset came to. `exact`: the runs of the same seeds with nothing encoded; empty if they failed."""
    rounded = {number: round(statistics.mean(made.seconds[number] for made in runs), 4) for number in runs[0].seconds}
    found: dict[str, Any] = {"preset": name, "cache_bytes": runs[0].cache_bytes[-1], "peak_cache_bytes": max(runs[0].cache_bytes)}
    found["ratio_to_16_bits"] = round(runs[0].exact_bytes / runs[0].cache_bytes[-1], 3)
    found["spans"] = len(runs[0].encode_ms)
    if setup.timed:
        found["encode_ms"] = round(statistics.median(runs[0].encode_ms), 2) if runs[0].encode_ms else None
        base = {number: exact[0].seconds[number] for number in rounded} if exact else {}
        percent = {number: round(100 * (rounded[number] / base[number] - 1), 1) for number in base}
        return {**found, "seconds_per_block": rounded, "overhead_percent": percent, "peak_bytes": runs[0].peaks}
    quarter = max(1, len(rounded) // 4)
    for column, last in (("psnr_db", None), ("psnr_db_last_quarter", quarter)):
        values = [psnr_db(whole, made, last) for whole, made in zip(exact, runs, strict=True)]
        there = [value for value in values if value is not None]
        found[column] = round(statistics.mean(there), 2) if there else None
        found[f"{column}_low"] = round(min(there), 2) if there else None
    return found


def random_weights(config: WanConfig, dtype: torch.dtype, device: torch.device, kind: type[CausalWan] = CausalWan) -> CausalWan:
    """A network whose every part shows in its output, made on the device itself; the recipe of the tests' checkpoint."""
    model = kind(config, dtype=dtype, device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, device=device)
        if "norm" in name:
            noise = 0.3 * noise + (0 if name.endswith("bias") else 1.5)
        elif "modulation" in name:
            noise *= 0.5
        else:
            noise *= 0.02 if name.endswith("bias") else weight[0].numel() ** -0.5
        weight.copy_(noise)
    return model


def measure(setup: Setup, presets: list[str], seeds: int, device: torch.device, save: bool, table: Path | None) -> None:
    """A row for every preset; exact comes first if it is among them."""
    if setup.config is None:
        model, presets = load_wan(tiny_wan.state_dict(), device=device), [SIXTEEN, *presets]
    else:
        model = random_weights(setup.config, setup.dtype, device)
    text = torch.randn(1, PROMPT_TOKENS, model.config.text_channels, generator=torch.Generator().manual_seed(1))
    prompt = model.read_prompt(text.to(device))
    weights = sum(weight.nbytes for weight in model.parameters())
    common = {"what": "run", "model": setup.name, "frames": setup.frames, "tokens_per_frame": _tokens(setup), "seeds": seeds}
    common |= {"weights_bytes": weights, "rehearsal": setup.name == TINY.name, **conditions(device)}
    exact: list[Run] = []
    rows = []
    for name in sorted(presets, key=lambda name: name != "exact"):
        try:
            if device.type == "cuda":  # kernels are compiled and tuned before anything is timed
                run(setup._replace(frames=min(setup.frames, WARM_UP_FRAMES)), model, prompt, name, 0, verify=False)
            runs = [run(setup, model, prompt, name, seed) for seed in range(seeds)]
        except (QVGError, torch.cuda.OutOfMemoryError) as failure:
            report("wan", {"preset": name, "failed": str(failure).splitlines()[0], **common}, save)
            continue
        exact = runs if name == "exact" else exact
        rows.append({**row(name, setup, runs, exact), **common})
        report("wan", rows[-1], save)
    if table is not None:
        write_table(rows, table)


def _tokens(setup: Setup) -> int:
    return setup.latent_rows * setup.latent_cols // 4


def measure_prompt(
    config: WanConfig, queries: int, words: tuple[int, ...], device: torch.device, save: bool, table: Path | None
) -> None:
    """One layer's cross-attention, with and without its projections, over prompts of so many tokens: padded, and merged."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_weights(config, dtype, device)
    layer: Any = model.blocks[0].cross_attn
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, queries, config.width, generator=generator).to(device, dtype)
    common = {"what": "prompt", "heads": config.heads, "queries": queries, "dtype": str(dtype).removeprefix("torch.")}
    rows = []
    for count in words:
        text = torch.randn(1, count, config.text_channels, generator=generator).to(device)
        q, prompts = layer.queries(x), {merged: model.read_prompt(text, merged) for merged in (False, True)}
        whole, merged = (prompts[key].attend(0, q) for key in (False, True))
        found: dict[str, Any] = {"prompt_tokens": count}
        calls: dict[str, Callable[[], Tensor]] = {}
        for key, name in ((False, "padded"), (True, "merged")):
            rows_read = prompts[key].layers[0]
            found[f"{name}_rows"] = (rows_read.keys if isinstance(rows_read, MergedPrompt) else rows_read[0]).shape[2]
            calls[f"{name}_attention_ms"] = partial(prompts[key].attend, 0, q)
            calls[f"{name}_layer_ms"] = partial(_cross_attention, layer, prompts[key], x)
        found |= _in_turn(calls, device)
        found["relative_error"] = float((merged - whole).float().norm() / whole.float().norm())
        rows.append({**found, **common, **conditions(device)})
        report("wan", rows[-1], save)
    if table is not None:
        write_table(rows, table)


def _in_turn(calls: dict[str, Callable[[], Tensor]], device: torch.device) -> dict[str, float]:
    """Milliseconds, the least of 15 rounds in which each is called once, so that a busy machine weighs on all alike."""
    rounds = [{name: median_ms(call, device, repeats=1) for name, call in calls.items()} for _ in range(15)]
    return {name: round(min(each[name] for each in rounds), 2) for name in calls}


@torch.inference_mode()
def _cross_attention(layer: Any, prompt: Prompt, x: Tensor) -> Tensor:
    out: Tensor = layer.out(prompt.attend(0, layer.queries(x)))
    return out


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """As CSV, for reading; versions in one column."""
    flat = [{**each, "versions": " ".join(f"{name} {version}" for name, version in each["versions"].items())} for each in rows]
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def main(arguments: list[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tiny", action="store_true", help="a small network on any machine")
    kind.add_argument("--quality", action="store_true", help="PSNR of the tests' checkpoint, on any machine")
    kind.add_argument("--prompt", action="store_true", help="only cross-attention, on any machine")
    parser.add_argument("--save", action="store_true", help="append the rows to results/wan.jsonl")
    parser.add_argument("--table", type=Path, metavar="CSV", help="also write the rows of --quality or --prompt as a table")
    parser.add_argument("--frames", type=int, help="latent frames, in whole blocks of 3")
    parser.add_argument("--seeds", type=int, default=3, help="videos of --quality")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    if options.save and (options.tiny or options.quality or not has_gpu):
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if not (has_gpu or options.tiny or options.quality or options.prompt):
        parser.error("there is no GPU here; --tiny is a dry run without one")
    setup = TINY if options.tiny else QUALITY if options.quality else FULL
    setup = setup._replace(frames=options.frames or setup.frames)
    if setup.frames < CHUNK or setup.frames % CHUNK:
        parser.error(f"--frames is {setup.frames}, but blocks are of {CHUNK}; use a multiple")
    device = torch.device("cuda" if has_gpu else "cpu")
    if not options.prompt:
        measure(setup, options.presets, options.seeds if options.quality else 1, device, options.save, options.table)
    if options.tiny:
        measure_prompt(WanConfig(1, 2, mlp=256, text_channels=64), 72, (7,), device, False, None)
    elif not options.quality:
        table = options.table if options.prompt else None
        measure_prompt(WanConfig(layers=1), CHUNK * _tokens(FULL), (60, 120), device, options.save, table)


if __name__ == "__main__":
    main()
