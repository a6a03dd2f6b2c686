"""Plans: cache terms equal what is counted, the others bound it from above and not by much, and the answers agree."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheSpec, ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.cache_watch import CacheWatch
from comfyui_qvg.qvg.cache.peak import peaks
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.codec import make_codecs
from comfyui_qvg.qvg.codec.base import EncodeHint
from comfyui_qvg.qvg.models.common.video_decoder import WAN_2_1, decode_bytes
from comfyui_qvg.qvg.models.common.world_schedule import MODES
from comfyui_qvg.qvg.models.registry import networks
from comfyui_qvg.qvg.plan import estimate
from comfyui_qvg.qvg.plan.activations import Block, activations
from comfyui_qvg.qvg.plan.advice import setting_that_fits
from comfyui_qvg.qvg.plan.estimate import Plan, Run, Video, Weights, pictures, plan
from comfyui_qvg.qvg.plan.report import report
from comfyui_qvg.qvg.sampling import place_blocks

from ...helpers import ROOT, LiveBytes

WAN = networks()["self-forcing-1.3b"]
GB = 10**9
KEYS = [
    "latent_frames",
    "weights_bytes",
    "exact_cache_bytes",
    "cache_end_bytes",
    "cache_peak_bytes",
    "workspace_bytes",
    "activation_bytes",
    "decode_bytes",
    "peak_bytes",
    "fits",
    "longest_frames",
]
SPARSE_KEYS = ["tile_bytes", "tokens_read", "tokens_kept"]
LATER_KEYS = ["away_bytes", "codebook_bytes", "most_cache_bytes", "short_spans", "merges", "recording_bytes", *SPARSE_KEYS]


def _plan(frames: int = 81, preset: str = "balanced", gigabytes: float | None = 24, **changes: Any) -> Plan:
    config = PRESETS[preset].with_changes(**changes)
    return plan(WAN, Video(832, 480, frames), config, None if gigabytes is None else round(gigabytes * GB))


@pytest.mark.parametrize("given", [0, 1, 4, 12])
@pytest.mark.parametrize("preset", PRESETS)
def test_cache_terms_are_what_a_real_run_counts(preset: str, given: int) -> None:
    network, video = replace(WAN, layers=2, heads=1, token_pixels=160), Video(800, 480, 109, given_frames=given)
    found, run = plan(network, video, PRESETS[preset]), Run(network, video, PRESETS[preset])
    assert run.spec.tokens_per_frame == 15 and found.latent_frames == 28
    with KVCache(run.spec, PRESETS[preset]) as cache:
        held = CacheWatch(cache)
        assert run.chunks(28) == [place.frames for place in place_blocks(28, given, 3)]
        for chunk in run.chunks(28):
            for layer in range(2):
                cache.layers[layer].append(*(torch.randn(1, 1, 15 * chunk, 128).bfloat16() for _ in range(2)))
                held.most = max(held.most, held.now())
                cache.commit_layer(layer)
        assert (found.cache_peak_bytes, found.cache_end_bytes) == (held.most, cache.nbytes().total)


def test_terms_of_the_smallest_model_at_480p() -> None:
    found = _plan(717, "exact")
    assert found.latent_frames == 180
    assert found.weights_bytes == 2_838_193_280  # counted on ComfyUI's network in bf16, its patch embedding in float32
    assert found.exact_cache_bytes == found.cache_end_bytes == CacheSpec(30, 12, 128, 1560).exact_bytes(180)
    assert found.workspace_bytes * 30 == found.exact_cache_bytes  # one layer in one piece
    assert found.decode_bytes == decode_bytes(832, 480, WAN_2_1)
    assert found.peak_bytes == sum((found.weights_bytes, found.cache_peak_bytes, found.workspace_bytes, found.activation_bytes))


def test_presets_stay_below_the_official_schedule() -> None:
    """12.84 GB at its worst moment at 180 latent frames (docs/memory.md, "Self-Forcing, counted")."""
    assert _plan(717).cache_peak_bytes <= 9.7 * GB
    assert _plan(717, "fewest-bytes").cache_peak_bytes <= 8.2 * GB
    assert round(_plan(717, "qvg").cache_end_bytes / GB, 2) == 10.39  # the official schedule's end, to the byte the same spans


@pytest.mark.parametrize("codec", ["klt", "qvg", "rtn", "kivi", "quarot"])
def test_encoding_takes_what_is_planned_for_it(codec: str) -> None:
    """Every tensor that the codec makes in torch, against the bound: 80 to 100 per cent of it."""
    config = QVGConfig(codec, clusters="auto", iterations=1, spans_per_codebook=8 if codec == "klt" else 1)
    network, tokens = replace(WAN, heads=2, text_tokens=0, text_channels=0, mlp=0, in_attention=0, beside_mlp=0), 4680
    x = torch.randn(1, 2, tokens, 128).bfloat16()
    with LiveBytes() as live:
        make_codecs(config).keys.encode(x, EncodeHint(checked=True))
    block = Block(batch=1, tokens=0, frame_values=0, span_tokens=tokens)
    bound = activations(network, block, config, triton=False).total(0)
    assert 0.8 * bound <= live.peak <= bound


@pytest.mark.parametrize("changes", [{}, {"window_frames": 24}], ids=["all", "window"])
@pytest.mark.parametrize("preset", ["exact", "balanced", "qvg"])
@pytest.mark.parametrize("gigabytes", [8, 12, 24])
def test_the_longest_that_fits_fits_and_the_next_does_not(preset: str, changes: dict[str, int], gigabytes: int) -> None:
    longest = _plan(81, preset, gigabytes, **changes).longest_frames
    if longest is None:
        assert changes and _plan(4001, preset, gigabytes, **changes).fits
        return
    assert (longest - 1) % 4 == 0 and (longest + 3) // 4 % 3 == 0
    assert _plan(longest, preset, gigabytes, **changes).fits
    assert not _plan(longest + 12, preset, gigabytes, **changes).fits


@pytest.mark.parametrize("name", ["self-forcing-1.3b", "worldplay-5b"])
def test_a_walk_through_all_lengths_finds_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every length the cache's worst moment is the walk's, and so is the longest that fits."""
    monkeypatch.setattr(estimate, "MOST_LATENT_FRAMES", 90)
    network, dice = networks()[name], random.Random(7)
    for _ in range(10):
        block, mode = dice.choice((None, 1, 4)), dice.choice(MODES) if network.context_frames else None
        window = None if network.context_frames else dice.choice((None, 24, 50))
        config = PRESETS[dice.choice(list(PRESETS))].with_changes(window_frames=window, offload=dice.choice(("gpu", "cpu")))
        video = Video(832, 480, 1, given_frames=dice.choice((0, 5)), block_frames=block, mode=mode)
        run, room = Run(network, video, config), round(dice.uniform(4, 40) * GB)
        longest, frames, each = 0, 0, block or network.chunk_frames
        for chunk in [video.given_frames % each, *[each] * -(-(network.most_frames or 90) // each)]:
            frames += chunk
            if not frames:
                continue
            walked = list(peaks(run.spec, run.config, run.chunks(frames), torch.bfloat16, network.by_layer))[-1]
            assert run.last_peak(frames) == walked
            if run.device_bytes(frames, walked.device_bytes) > room:
                break
            longest = frames
        else:
            longest = longest if network.most_frames else -1
        expected = None if longest < 0 else pictures(longest, network)
        assert run.longest(room, 0) == expected


@pytest.mark.parametrize("block_frames", [None, 1, 64])
@pytest.mark.parametrize("gigabytes", [2, 24, 1000])
def test_the_longest_video_is_planned_at_once(block_frames: int | None, gigabytes: int) -> None:
    """With advice, which plans for every preset and many windows: minutes, if every block of each were walked through."""
    begun = time.process_time()
    video = Video(832, 480, 99_997, block_frames=block_frames)
    setting_that_fits(lambda config: plan(WAN, video, config, gigabytes * GB), PRESETS["balanced"], block_frames or 3)
    assert time.process_time() - begun < 10


def test_what_is_never_encoded_needs_no_room_for_encoding() -> None:
    """Preset qvg encodes 24 frames together, and not before 30 are there: one of sink in a block of 3, 24, and 3 recent ones."""
    sizes = {latent: _plan(4 * latent - 3, "qvg", None).activation_bytes for latent in (21, 27, 28, 30)}
    frame = (sizes[27] - sizes[21]) // 6
    assert sizes[28] - sizes[27] > 100 * frame and sizes[30] - sizes[28] == 2 * frame
    assert sizes[21] == _plan(81, "exact", None).activation_bytes


def test_a_video_that_fits_is_not_longer_than_the_longest() -> None:
    """Two latent frames fit, a whole block of three does not."""
    found = _plan(5, gigabytes=4)
    assert found.fits and found.longest_frames == 5
    assert _plan(9, gigabytes=4).longest_frames == 0


def test_without_a_card_nothing_is_said_about_fitting() -> None:
    found = _plan(81, gigabytes=None)
    assert found.fits is None and found.longest_frames is None and found.peak_bytes


def test_a_card_that_does_not_hold_the_weights_fits_nothing() -> None:
    found = _plan(9, gigabytes=2)
    assert not found.fits and found.longest_frames == 0


@pytest.mark.parametrize(
    ("frames", "gigabytes", "expected"),
    [(81, 14, "exact"), (241, 10, "near-exact"), (717, 12.5, "balanced"), (717, 11, "fewest-bytes")],
)
def test_the_setting_advised_fits_and_is_the_nearest_to_exact(frames: int, gigabytes: float, expected: str) -> None:
    def made(config: QVGConfig) -> Plan:
        return plan(WAN, Video(832, 480, frames), config, round(gigabytes * GB))

    asked = PRESETS["qvg"]
    setting = setting_that_fits(made, asked, 3)
    assert setting is not None and (setting.preset, setting.window_frames) == (expected, None)
    assert made(setting.config(asked)).fits


def test_where_no_preset_does_a_window_does() -> None:
    def made(config: QVGConfig) -> Plan:
        return plan(WAN, Video(832, 480, 12_001), config, 12 * GB)

    setting = setting_that_fits(made, PRESETS["balanced"], 3)
    assert setting is not None and setting.preset == "balanced" and setting.window_frames
    assert made(setting.config(PRESETS["balanced"])).fits
    assert not made(replace(setting, window_frames=setting.window_frames + 3).config(PRESETS["balanced"])).fits
    assert setting_that_fits(lambda config: plan(WAN, Video(832, 480, 81), config, 2 * GB), PRESETS["balanced"], 3) is None


def test_the_decoder_counts_too() -> None:
    """At 1080p the decoder takes more than a short video's sampling."""
    found = plan(WAN, Video(1920, 1088, 9), PRESETS["balanced"], 16 * GB)
    assert found.peak_bytes == found.decode_bytes > found.sampling_bytes


@pytest.mark.parametrize("name", networks())
def test_every_model_has_a_plan(name: str) -> None:
    network = networks()[name]
    blocks = 4 if network.segment_frames is None else 10  # a first segment remembers nothing
    found = plan(network, Video(832, 480, 1 + 4 * (blocks * network.chunk_frames - 1)), PRESETS["balanced"], 80 * GB)
    assert found.latent_frames == blocks * network.chunk_frames
    assert 2 * network.parameters <= found.weights_bytes <= 2.01 * network.parameters
    assert 0 < found.cache_end_bytes <= found.cache_peak_bytes < found.exact_cache_bytes + found.activation_bytes
    eight = plan(network, Video(832, 480, 81), PRESETS["balanced"], weights=Weights("fp8")).weights_bytes
    assert network.parameters < eight < 1.2 * network.parameters


def test_worldplay_keeps_half_of_what_its_vendor_keeps() -> None:
    """48 frames of context: 14,850 MiB at 16 bits (docs/memory.md, "HY-WorldPlay")."""
    found = plan(networks()["worldplay-5b"], Video(1280, 704, 189, mode="incremental"), PRESETS["exact"])
    assert found.exact_cache_bytes == 14_850 * 2**20


@pytest.mark.parametrize("preset", ["exact", "balanced", "qvg"])
@pytest.mark.parametrize(("pictures", "seen"), [(13, 4), (45, 8), (205, 16), (957, 16)])
def test_a_world_in_mode_vendor_remembers_one_chosen_context(preset: str, pictures: int, seen: int) -> None:
    network = replace(networks()["worldplay-5b"], layers=2, heads=1, token_pixels=160)
    video = Video(800, 480, pictures)
    found, run = plan(network, video, PRESETS[preset]), Run(network, video, PRESETS[preset])
    with KVCache(run.spec, run.config) as cache:
        keys = torch.randn(1, 1, seen * 15, 128, generator=torch.Generator().manual_seed(0)).to(run.spec.dtype)
        for layer in range(2):
            cache.layers[layer].append(keys, keys)
            cache.commit_layer(layer)
        assert cache.nbytes().total == found.cache_end_bytes
    assert found.exact_cache_bytes == run.spec.exact_bytes(seen)


def test_a_world_takes_what_its_mode_runs_over() -> None:
    """Vendor: 16 chosen frames at most. Persistent: every pass over all earlier frames. Incremental: over four."""
    network = networks()["worldplay-5b"]
    vendor, persistent, incremental = (
        [plan(network, Video(1280, 704, frames, mode=mode), PRESETS["balanced"], 24 * GB) for frames in (205, 413)]
        for mode in MODES
    )
    assert vendor[0].cache_peak_bytes == vendor[1].cache_peak_bytes < incremental[0].cache_peak_bytes
    assert vendor[0].longest_frames == 957
    assert persistent[0].cache_peak_bytes == incremental[0].cache_peak_bytes
    assert incremental[0].activation_bytes < vendor[0].activation_bytes < persistent[0].activation_bytes
    assert persistent[1].activation_bytes > 1.9 * persistent[0].activation_bytes
    assert plan(network, Video(1280, 704, 205), PRESETS["balanced"], 24 * GB) == vendor[0]


def test_what_fits_on_which_card_is_said_of_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    """And no window is proposed to a world, which refuses one."""
    size = ["plan", "--model", "worldplay-5b", "--width", "1280", "--height", "704", "--frames", "205"]
    assert main([*size, "--vram-gb", "16"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("It fits") and "mode vendor, at the end" in text
    assert re.search(r"in mode persistent, while sampling +[\d.]+ GB, does not fit", text)
    assert re.search(r"in mode incremental, while sampling +[\d.]+ GB, does not fit", text)
    assert main([*size, "--vram-gb", "12", "--mode", "incremental"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("It does not fit") and "window_frames" not in text and "in mode vendor" in text


@pytest.mark.parametrize(
    ("name", "video", "config", "says"),
    [
        ("worldplay-5b", Video(1280, 704, 961), {}, "frames is 961, more than the 957 at which a session"),
        ("worldplay-5b", Video(1280, 704, 61), {"window_frames": 24}, "window_frames is 24, but which frames a world"),
        ("worldplay-8b", Video(832, 480, 61, mode="later"), {}, "mode is 'later', but must be one of vendor"),
        ("self-forcing-1.3b", Video(832, 480, 81, mode="vendor"), {}, "mode is 'vendor', but Self-Forcing 1.3B is no world"),
    ],
)
def test_what_no_world_can_be_planned_with(name: str, video: Video, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(networks()[name], video, PRESETS["balanced"].with_changes(**config))


@pytest.mark.parametrize(
    ("video", "says"),
    [
        (Video(830, 480, 81), "width is 830, but Self-Forcing 1.3B makes multiples of 16 pixels; use 832"),
        (Video(832, 0, 81), "height is 0, .* use 16"),
        (Video(832, 480, 80), "frames is 80, but .* use 77 or 81"),
        (Video(832, 480, 0), "frames is 0, .* use 1$"),
        (Video(832, 480, 400_001), "frames is 400001, more than the 99997"),
        (Video(832, 480, 81, batch=0), "batch is 0"),
        (Video(832, 480, 81, given_frames=-1), "given frames is -1"),
        (Video(832, 480, 81, given_frames=22), "given frames is 22, but the video has 21 latent frames; make it longer"),
        (Video(832, 480, 81, block_frames=-3), "block frames is -3"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(video: Video, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(WAN, video, PRESETS["balanced"])


def _command(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    size = ("--model", "self-forcing-1.3b", "--width", "832", "--height", "480", "--frames", "717")
    code = main(["plan", *size, *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_the_keys_programs_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _command(capsys, "--preset", "qvg", "--span-frames", "6", "--vram-gb", "24", "--json")
    printed = json.loads(out)
    assert code == 0 and list(printed)[: len(KEYS)] == KEYS
    expected = _plan(717, "qvg", span_frames=6)
    assert {key: printed[key] for key in (*KEYS, *LATER_KEYS)} == asdict(expected)
    assert printed["setting"] is None and printed["verdict"].startswith("It fits: ")


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (("--preset", "fewest-bytes"), PRESETS["fewest-bytes"]),
        (("--codec", "none"), PRESETS["exact"]),
        (("--codec", "qvg", "--bits", "4"), QVGConfig(bits=4, bits_v=4, clusters="auto")),
        (("--codec", "klt", "--bits", "2.5", "--bits-v", "3"), PRESETS["balanced"].with_changes(bits=2.5, bits_v=3)),
        (("--codec", "kivi", "--bits", "2"), QVGConfig("kivi", 2, symmetric=False)),
        (("--window", "24", "--sink-frames", "3"), PRESETS["balanced"].with_changes(window_frames=24, sink_frames=3)),
    ],
)
def test_arguments_mean_what_the_node_makes_of_its_widgets(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], config: QVGConfig
) -> None:
    code, out, _ = _command(capsys, *arguments, "--vram-gb", "24", "--json")
    found = plan(WAN, Video(832, 480, 717), config, 24 * GB)
    assert code == 0 and {key: json.loads(out)[key] for key in (*KEYS, *LATER_KEYS)} == asdict(found)


def test_people_get_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _command(capsys, "--preset", "exact", "--vram-gb", "16")
    assert code == 0
    assert (
        "It does not fit: 57.01 GB of 16.00 GB. The longest that fits has 165 frames. It would fit with preset balanced." in out
    )
    assert "cache at 16 bits per value" in out and "51.76 GB" in out
    code, out, _ = _command(capsys, "--window", "21", "--vram-gb", "4")
    assert "No preset makes it fit, with any window. It would run, slower" in out
    code, out, _ = _command(capsys, "--vram-gb", "12.5")
    assert "It fits: 11.99 GB of 12.50 GB." in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no card")
def test_where_there_is_no_card_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _command(capsys, "--json")
    assert code == 0 and json.loads(out)["fits"] is None and "say how much memory it has" in json.loads(out)["verdict"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "wan"), "there is no model 'wan'"),
        (("--preset", "best"), "preset is 'best'"),
        (("--preset", "qvg", "--codec", "qvg"), "leave one out"),
        (("--codec", "qvg", "--bits", "2.5"), "bits is 2.5"),
        (("--window", "4"), "window_frames is 4"),
        (("--vram-gb", "0"), "--vram-gb is 0"),
        (("--weights", "int3"), "weights is 'int3'"),
        (("--frames", "80"), "use 77 or 81"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    code, out, err = _command(capsys, *arguments)
    assert code == 2 and out == "" and says in err and err.startswith("error: ") and err.count("\n") == 1


def test_what_is_no_number_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _command(capsys, "--bits", "two")
    assert capsys.readouterr().err.endswith("error: argument --bits: invalid number value: 'two'\n")


def test_planning_imports_neither_comfyui_nor_a_gpu() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package; "
        "import comfyui_qvg.qvg.plan.command, torch; "
        "assert not torch.cuda.is_initialized() and 'comfy' not in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_table_of_counted_bytes_is_what_is_predicted() -> None:
    """benchmarks/results/cache_bytes.csv was counted in real runs of one layer; so were the predictions of today, then."""
    spec = CacheSpec(30, 12, 128, 1560, 3)
    with Path(ROOT / "benchmarks/results/cache_bytes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["preset"], int(row["frames"])) for row in rows} == {
        (name, frames) for name in PRESETS for frames in (21, 60, 180, 240)
    }
    for row in rows:
        config, frames = PRESETS[row["preset"]], int(row["frames"])
        assert int(row["counted_end_bytes"]) == int(row["end_bytes"]) == spec.predict(config, frames).total
        assert int(row["counted_peak_bytes"]) == int(row["peak_bytes"]) == spec.predict_peak(config, frames)
        assert int(row["exact_bytes"]) == spec.exact_bytes(frames)


def test_a_network_that_computes_in_float32() -> None:
    """Its exact cache is float32, and the block in work beside any cache."""
    wide = Weights(compute=torch.float32)
    exact, klt = (plan(WAN, Video(832, 480, 81), PRESETS[name], weights=wide) for name in ("exact", "balanced"))
    assert exact.cache_end_bytes == 2 * _plan(81, "exact").cache_end_bytes
    assert klt.cache_end_bytes == _plan(81).cache_end_bytes
    assert klt.cache_peak_bytes > _plan(81).cache_peak_bytes and klt.activation_bytes > 1.5 * _plan(81).activation_bytes


@pytest.mark.parametrize("preset", ["qvg", "balanced"])
def test_spans_in_main_memory_are_not_on_the_card(preset: str) -> None:
    """On the device: what is exact, and packed spans of two layers."""
    here, away = (_plan(957, preset, 8, offload=where) for where in ("gpu", "cpu"))
    assert (here.cache_end_bytes, here.cache_peak_bytes) == (away.cache_end_bytes, away.cache_peak_bytes)
    assert here.away_bytes == 0 and here.sampling_bytes - away.sampling_bytes == away.away_bytes
    spec, config = CacheSpec(30, 12, 128, 1560, 3), PRESETS[preset].with_changes(offload="cpu")
    sizes = spec.predict(config, 240)
    packed = (sizes.total - sizes.exact) // 30
    on_device = away.cache_peak_bytes - away.away_bytes
    assert spec.device_bytes(config, 240) <= on_device
    if preset == "balanced":  # whose worst moment is the last commit: then a block is there twice, and what the codec makes
        assert on_device <= spec.device_bytes(config, 240) + 2 * spec.exact_bytes(3) // 30 + packed
    assert plan(WAN, Video(832, 480, 957), config, device_type="cpu").away_bytes == 0


def test_spans_go_to_main_memory_before_frames_are_forgotten() -> None:
    def made(config: QVGConfig) -> Plan:
        return plan(WAN, Video(832, 480, 957), config, 8 * GB)

    setting = setting_that_fits(made, PRESETS["balanced"], 3)
    assert setting is not None and (setting.preset, setting.window_frames, setting.offload) == ("balanced", None, "cpu")
    assert setting.text() == "preset balanced, offload cpu" and made(setting.config(PRESETS["balanced"])).fits


def test_offload_takes_packed_spans_off_the_device() -> None:
    here, away = _plan(717), _plan(717, offload="cpu")
    assert (away.cache_peak_bytes, away.cache_end_bytes) == (here.cache_peak_bytes, here.cache_end_bytes)
    spec, config = Run(WAN, Video(832, 480, 717), PRESETS["balanced"]).spec, PRESETS["balanced"].with_changes(offload="cpu")
    at_the_end = spec.device_bytes(config, 180)
    assert at_the_end <= away.cache_peak_bytes - away.away_bytes < 1.25 * at_the_end
    assert here.sampling_bytes - away.sampling_bytes == away.away_bytes > 5 * GB and here.away_bytes == 0
    assert _plan(717, gigabytes=10).fits is False and _plan(717, gigabytes=10, offload="cpu").fits
    assert (_plan(717, gigabytes=10, offload="cpu").longest_frames or 0) > (_plan(717, gigabytes=10).longest_frames or 0)
    text = report(WAN, Video(832, 480, 717), "preset balanced", away, 10 * GB, None)
    (line,) = (line for line in text.splitlines() if "of which in main memory" in line)
    assert line.endswith(f" {away.away_bytes / GB:.2f} GB")
    assert "of which in main memory" not in report(WAN, Video(832, 480, 717), "preset balanced", here, 10 * GB, None)


def test_offload_that_moves_nothing_is_not_said_to_move_less_than_nothing() -> None:
    """A video that ends before anything is encoded."""
    made = _plan(45, "qvg", offload="cpu", window_frames=15, sink_frames=3, recent_frames=3)
    assert made.away_bytes == 0 and made.sampling_bytes > made.cache_peak_bytes + made.weights_bytes
    assert "of which in main memory" not in report(WAN, Video(832, 480, 957), "preset qvg", made, 10 * GB, None)


def test_a_device_that_shares_main_memory_gains_nothing_by_offload() -> None:
    config = PRESETS["balanced"].with_changes(offload="cpu")
    for device_type in ("cpu", "mps"):
        assert plan(WAN, Video(832, 480, 717), config, device_type=device_type).away_bytes == 0
