"""Nodes that put a real ComfyUI into the situations that the tests are about. Loaded beside the pack, never published."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import importlib.util
import itertools
import json
import logging
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import comfy.ldm.wan.vae2_2
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import folder_paths
import torch
from aiohttp import web
from comfy.ldm.models.autoencoder import AutoencodingEngine
from comfy.patcher_extension import WrappersMP
from comfy_execution.caching import BasicCache
from server import PromptServer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What happened, for TestingSay.
SAID: dict[str, Any] = {}


def _patcher(model: Any) -> Any:
    return comfy.model_patcher.ModelPatcher(model, mm.get_torch_device(), mm.unet_offload_device())


def _loaded() -> list[str]:
    return sorted(type(each.model.model).__name__ for each in mm.current_loaded_models)


def _cast_layers(patcher: Any) -> int:
    modules = patcher.model.diffusion_model.modules()
    return sum(bool(getattr(module, "comfy_cast_weights", False)) for module in modules)


def _node(returns: tuple[str, ...], **inputs: Any) -> Any:
    """Make a class with `run` a ComfyUI node."""

    def decorate(cls: Any) -> Any:
        cls.INPUT_TYPES = classmethod(lambda cls: {"required": inputs})
        cls.RETURN_TYPES, cls.FUNCTION, cls.CATEGORY = returns, "run", "testing"
        NODE_CLASS_MAPPINGS[cls.__name__] = cls
        return cls

    return decorate


NODE_CLASS_MAPPINGS: dict[str, Any] = {}


@PromptServer.instance.routes.get("/testing/flags")
async def _flags(_: Any) -> Any:
    """What the server has been told to free and has not begun with; what is queued from then on comes after it."""
    return web.json_response(PromptServer.instance.prompt_queue.get_flags(reset=False))


_REAL_FOLDERS = (folder_paths.get_filename_list, folder_paths.get_full_path)


@PromptServer.instance.routes.post("/testing/separators")
async def _separators(request: Any) -> Any:
    """ComfyUI's folders as they are on Windows ("\\") or as they really are ("/")."""
    listed, found = _REAL_FOLDERS
    if (await request.json())["separator"] == "\\":
        folder_paths.get_filename_list = lambda folder: [name.replace("/", "\\") for name in listed(folder)]
        folder_paths.get_full_path = lambda folder, name: found(folder, name.replace("\\", "/"))
    else:
        folder_paths.get_filename_list, folder_paths.get_full_path = listed, found
    return web.json_response({})


class _TinyNetwork(torch.nn.Module):
    """What an image model is to ComfyUI, and no more."""

    def __init__(self, device: Any, operations: Any, dtype: Any, **unused: Any):
        super().__init__()
        self.dtype = dtype
        self.layer = operations.Conv2d(4, 4, 1, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, *unused: Any, **more: Any) -> torch.Tensor:
        return self.layer(x)


def _image_model() -> Any:
    settings = comfy.supported_models.SD15({"dtype": torch.float32})
    return comfy.model_base.BaseModel(settings, unet_model=_TinyNetwork)


def _causal_model(**more: Any) -> Any:
    shape = {"dim": 96, "ffn_dim": 64, "num_heads": 4, "num_layers": 1, "text_dim": 32, "freq_dim": 32, "dtype": torch.float32}
    return comfy.supported_models.WAN21_CausalAR_T2V({"image_model": "wan2.1", **shape, **more}).get_model({})


def _forked_model() -> Any:
    """As a ComfyUI may be whose causal Wan has other functions than the one that we know."""
    model = _causal_model()
    known = type(model.diffusion_model)
    model.diffusion_model.__class__ = type("Forked", (known,), {"init_kv_caches": lambda self, batch_size, frames: []})
    return model


def _causal_model_with_images() -> Any:
    """As one would be whose cross-attention sees a picture beside the prompt."""
    return _causal_model(model_type="i2v")


KINDS = {"image": _image_model, "causal": _causal_model, "forked": _forked_model, "causal, images": _causal_model_with_images}


@_node(("MODEL",), kind=(list(KINDS),))
class TestingForeignModel:
    def run(self, kind: str) -> Any:
        return (_patcher(KINDS[kind]()),)


def _must_not_run(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the override was called")


@_node(("MODEL",), model=("MODEL",))
class TestingAttention:
    """As node packs replace attention: SageAttention and FlashAttention through the override, others through patches."""

    def run(self, model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = _must_not_run
        clone.set_model_attn1_patch(_must_not_run)
        return (clone,)


def _while_sampling(model: Any, wrapper: Any) -> Any:
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "testing", wrapper)
    return clone


@_node(("MODEL",), model=("MODEL",), megabytes=("FLOAT", {"default": 1.0}))
class TestingPartlyUnloaded:
    """Some of the weights leave the device before sampling and are cast layer by layer, as under --lowvram."""

    def run(self, model: Any, megabytes: float) -> Any:
        def wrapper(executor: Any, guider: Any, *args: Any) -> Any:
            patcher = guider.model_patcher
            SAID["freed"] = patcher.partially_unload(patcher.offload_device, int(megabytes * 1e6))
            SAID["cast layers"] = _cast_layers(patcher)
            SAID["lora patches at cast time"] = patcher.model.lowvram_patch_counter
            result = executor(guider, *args)
            SAID["loaded again"] = patcher.partially_load(patcher.load_device, 1 << 40)
            return result

        return (_while_sampling(model, wrapper),)


@_node(("MODEL",), model=("MODEL",), call=("INT", {"default": 1}))
class TestingFailing:
    """The `call`-th pass of the network raises."""

    def run(self, model: Any, call: int) -> Any:
        clone, calls = model.clone(), iter(range(1, 1 << 30))

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise RuntimeError("the lights went out")
            return executor(*args, **kwargs)

        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "testing", wrapper)
        return (clone,)


@_node(("MODEL",), model=("MODEL",))
class TestingPasses:
    """Every pass of the network is counted in the log when it begins, so that a test knows how far a run is."""

    def run(self, model: Any) -> Any:
        clone, calls = model.clone(), itertools.count(1)

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            logging.info("testing: pass %d", next(calls))
            return executor(*args, **kwargs)

        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "testing", wrapper)
        return (clone,)


@_node((), file=("STRING", {"default": ""}), model=("MODEL",))
class TestingOldComfyUI:
    """What our loader says in a ComfyUI whose function for loading knows nothing of metadata, and in one without causal Wan."""

    OUTPUT_NODE = True

    def run(self, file: str, model: Any) -> Any:
        (loader,) = (each for name, each in sys.modules.items() if name.endswith(".nodes.comfy.loading"))
        said = []
        for owner, name, older in (
            (comfy.sd, "load_diffusion_model_state_dict", lambda sd, model_options: None),
            (importlib.util, "find_spec", lambda name: None),
        ):
            before = getattr(owner, name)
            setattr(owner, name, older)
            try:
                loader.load(file, "Load Causal Wan")
            except ValueError as error:
                said.append(str(error))
            finally:
                setattr(owner, name, before)
        return {"ui": {"text": said}}


@_node(("MODEL",), file=("STRING", {}), dtype=("STRING", {}), node=("STRING", {}))
class TestingOnACard:
    """Our loader's model where the device computes fp16 and bf16 well, as most graphics cards do. Says in what it computes, and
    in what it does when ComfyUI has made it again."""

    OUTPUT_NODE = True

    def run(self, file: str, dtype: str, node: str) -> Any:
        (loader,) = (each for name, each in sys.modules.items() if name.endswith(".nodes.comfy.loading"))
        able = {name: lambda *unused, **more: True for name in ("should_use_fp16", "should_use_bf16")}
        before = {name: getattr(mm, name) for name in able}
        try:
            for name, answer in able.items():
                setattr(mm, name, answer)
            loaded = loader.load(file, node, dtype=dtype)
            factory, arguments = loaded.model.cached_patcher_init
            again = factory(*arguments)
        finally:
            for name, answer in before.items():
                setattr(mm, name, answer)
        said = [str(each.model.get_dtype_inference()) for each in (loaded.model, again)]
        said.append(str(loaded.model.model.get_dtype()))
        return {"ui": {"text": [*said, loaded.text]}, "result": (loaded.model,)}


@_node(("MODEL",), model=("MODEL",))
class TestingLoadedAgain:
    """As ComfyUI has a loader make its model once more, for hooks and for other cards, and hands over what was patched."""

    def run(self, model: Any) -> Any:
        factory, arguments = model.cached_patcher_init
        again = factory(*arguments, disable_dynamic=True)
        assert again.model is not model.model
        return (model.clone(model_override=(again.model, ({}, {}, {}, set()))),)


@_node(
    ("MODEL",),
    model=("MODEL",),
    megabytes=("FLOAT", {"default": 1.0}),
    other=("BOOLEAN", {"default": True}),
    elsewhere=("BOOLEAN", {"default": False}),
)
class TestingShortOfMemory:
    """While sampling, the device says that it has so much free, and plenty once a model has left it. `other`: another model is
    loaded, too. `elsewhere`: weights that leave go to a device that is called otherwise, as they do where there is a GPU."""

    def run(self, model: Any, megabytes: float, other: bool, elsewhere: bool) -> Any:
        def wrapper(executor: Any, guider: Any, *args: Any) -> Any:
            others = [_patcher(_image_model())] if other else []  # the memory manager holds them weakly
            mm.load_models_gpu(others)
            if elsewhere:
                guider.model_patcher.offload_device = torch.device("cpu:0")
            loaded, asked = len(mm.current_loaded_models), []
            honest, give_way = mm.get_free_memory, mm.free_memory

            def short(dev: Any = None, torch_free_too: bool = False) -> Any:
                free = megabytes * 1e6 if len(mm.current_loaded_models) == loaded else 1e12
                return (free, free) if torch_free_too else free

            def spied(memory_required: float, *more: Any, **keywords: Any) -> Any:
                asked.append(memory_required - mm.minimum_inference_memory())
                return give_way(memory_required, *more, **keywords)

            SAID["before"] = _loaded()
            mm.get_free_memory, mm.free_memory = short, spied
            try:
                return executor(guider, *args)
            finally:
                mm.get_free_memory, mm.free_memory = honest, give_way
                SAID.update(asked=asked, after=_loaded())
                SAID["cast layers"] = _cast_layers(guider.model_patcher)

        return (_while_sampling(model, wrapper),)


@_node(("LATENT",), samples=("LATENT",), bytes=("INT", {"default": -1, "min": -1, "max": 1 << 40}))
class TestingFileLimit:
    """No file of this process may grow beyond so many bytes, as on a full disk; -1 lifts that."""

    def run(self, samples: Any, bytes: int) -> Any:
        import resource  # not there on Windows

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if bytes < 0 else bytes, hard))
        return (samples,)


class _Noise:
    """Every video of the batch gets the noise that RandomNoise gives a video alone."""

    def __init__(self, seeds: list[int]):
        self.seeds, self.seed = seeds, seeds[0]

    def generate_noise(self, latent: Any) -> torch.Tensor:
        shape = (1, *latent["samples"].shape[1:])
        return torch.cat([torch.randn(shape, generator=torch.manual_seed(seed), device="cpu") for seed in self.seeds])


@_node(("NOISE",), seeds=("STRING", {"default": "1,2"}))
class TestingNoise:
    def run(self, seeds: str) -> Any:
        return (_Noise([int(seed) for seed in seeds.split(",")]),)


@_node(("CONDITIONING",), seed=("INT", {"default": 1}), prompts=("INT", {"default": 1}), tokens=("INT", {"default": 12}))
class TestingPrompt:
    """What a text encoder of Wan gives, of random numbers; more prompts than one are run one after the other, as they differ in
    length."""

    def run(self, seed: int, prompts: int, tokens: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return ([[torch.randn(1, tokens + 1 + extra, 4096, generator=generator), {}] for extra in range(prompts)],)


@_node(("MODEL",), model=("MODEL",))
class TestingMemoryAsked:
    """Notes what ComfyUI is asked for: shapes that activations are estimated of, and bytes of which others make room."""

    def run(self, model: Any) -> Any:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            network = executor.class_obj.model_patcher.model
            estimate, give_way = network.memory_required, mm.free_memory
            SAID.update(shapes=[], asked=[])

            def noted(shape: Any, *more: Any, **keywords: Any) -> Any:
                SAID["shapes"].append(list(shape))
                return estimate(shape, *more, **keywords)

            def spied(memory_required: float, *more: Any, **keywords: Any) -> Any:
                SAID["asked"].append(memory_required - mm.minimum_inference_memory())
                return give_way(memory_required, *more, **keywords)

            network.memory_required, mm.free_memory = noted, spied
            try:
                return executor(*args, **kwargs)
            finally:
                del network.memory_required
                mm.free_memory = give_way

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing", wrapper)
        return (clone,)


@_node(("LATENT",), samples=("LATENT",), frames=("INT", {"default": 1}))
class TestingFrames:
    """The first frames of a video."""

    def run(self, samples: Any, frames: int) -> Any:
        return ({"samples": samples["samples"][:, :, :frames]},)


def _ours(name: str) -> Any:
    """A module of our pack, under whatever name ComfyUI has loaded it."""
    return next(module for known, module in sys.modules.items() if known.endswith(f".nodes.comfy.{name}"))


@_node(("MODEL",), model=("MODEL",), megabytes=("FLOAT", {"default": 1.0}))
class TestingCard:
    """While this MODEL is sampled, the device is taken for a graphics card with so much memory in all."""

    def run(self, model: Any, megabytes: float) -> Any:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            plans = _ours("model_plan")
            honest, plans.known_memory = plans.known_memory, lambda device: int(megabytes * 1e6)
            try:
                return executor(*args, **kwargs)
            finally:
                plans.known_memory = honest

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing", wrapper)
        return (clone,)


@_node(("MODEL",), model=("MODEL",))
class TestingHeld:
    """Counts the most that caches held at any moment, from a run's first block to its last."""

    def run(self, model: Any) -> Any:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            caches = _of_the_pack("qvg.cache.kv_cache")
            watch = _of_the_pack("qvg.bench.cache_watch").CacheWatch
            honest = caches.LayerCache.append, caches.KVCache.__init__
            watches: list[Any] = []

            def noted(layer: Any, *args: Any) -> None:
                honest[0](layer, *args)
                for each in watches:
                    each.most = max(each.most, each.now())

            def watched(cache: Any, *args: Any) -> None:
                honest[1](cache, *args)
                watches.append(watch(cache))

            caches.LayerCache.append, caches.KVCache.__init__ = noted, watched
            try:
                return executor(*args, **kwargs)
            finally:
                caches.LayerCache.append, caches.KVCache.__init__ = honest
                SAID["held"] = [each.most for each in watches]

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing", wrapper)
        return (clone,)


class _Live(TorchDispatchMode):
    """Bytes of tensors made and alive, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        weakref.finalize(storage, self._remove, key)
        self.now += size
        self.most = max(self.most, self.now)

    def _remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@_node(("MODEL",), model=("MODEL",))
class TestingLive:
    """Counts every tensor that is made while this MODEL is sampled."""

    def run(self, model: Any) -> Any:
        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            with _Live() as live:
                result = executor(*args, **kwargs)
            SAID["live"] = live.most
            return result

        return (_while_sampling(model, wrapper),)


class _Pictures:
    """Stands in for Wan's VAE: eight pixels of a start image become one of the latent's, each channel of one colour."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return latent.repeat(1, 6, 1, 1)[:, :16, None] * 2 - 1


@_node(("VAE",))
class TestingVAE:
    def run(self) -> Any:
        return (_Pictures(),)


class _WorldPictures:
    """The same for Wan 2.2's VAE: 16 pixels, 48 channels."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16)
        return latent.repeat(1, 16, 1, 1)[:, :, None] * 2 - 1


@_node(("VAE",))
class TestingWorldVAE:
    def run(self) -> Any:
        return (_WorldPictures(),)


class _HunyuanPictures:
    """The same for HunyuanVideo 1.5's VAE: 16 pixels, 32 channels."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 16)
        return latent.repeat(1, 11, 1, 1)[:, :32, None] * 2 - 1


@_node(("VAE",))
class TestingHunyuanVAE:
    def run(self) -> Any:
        return (_HunyuanPictures(),)


@_node(("CONDITIONING",), seed=("INT", {"default": 1}), letters=("INT", {"default": 3}), valid=("INT", {"default": 9}))
class TestingHunyuanPrompt:
    """What HunyuanVideo 1.5's encoders give, of random numbers: 12 tokens of which `valid` are no padding, and a picture's."""

    def run(self, seed: int, letters: int, valid: int) -> Any:
        text, byt5, vision = hunyuan_states(seed, letters)
        more: dict[str, Any] = {"attention_mask": (torch.arange(12) < valid).long()[None], "pooled_output": None}
        more |= {"conditioning_byt5small": byt5} if letters else {}
        more["clip_vision_output"] = types.SimpleNamespace(last_hidden_state=vision)
        return ([[text, more]],)


@_node(("CLIP_VISION_OUTPUT",), image=("IMAGE",), seed=("INT", {"default": 1}))
class TestingClipVision:
    """What a vision encoder of HunyuanVideo 1.5 gives, of random numbers that know the picture."""

    def run(self, image: torch.Tensor, seed: int) -> Any:
        vision = hunyuan_states(seed, 0)[2] * (1 + image.mean())
        return (types.SimpleNamespace(last_hidden_state=vision),)


def hunyuan_states(seed: int, letters: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text, letters and picture, as `tests/integration/test_world_hunyuan.py` draws them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 12, 4096), (1, max(1, letters), 1472), (1, 5, 1152))
    text, byt5, vision = (torch.randn(shape, generator=generator) for shape in shapes)
    return text, byt5, vision


@_node(("LATENT",), samples=("LATENT",), frames=("INT", {"default": 4}))
class TestingFirstFrames:
    def run(self, samples: Any, frames: int) -> Any:
        return ({"samples": samples["samples"][:, :, :frames].clone()},)


@_node(("IMAGE",), samples=("LATENT",))
class TestingPictures:
    """Three channels of a Wan latent as pictures, one per latent frame."""

    def run(self, samples: Any) -> Any:
        return ((samples["samples"][0, :3].permute(1, 2, 3, 0) * 0.2 + 0.5).clamp(0, 1),)


@_node(("MODEL",), model=("MODEL",))
class TestingOtherAttention:
    """As packs do that replace self-attention of ComfyUI's own models: an object patch that knows core's cache alone."""

    def run(self, model: Any) -> Any:
        clone = model.clone()
        attention = clone.model.diffusion_model.blocks[0].self_attn
        clone.add_object_patch("diffusion_model.blocks.0.self_attn.forward", types.MethodType(type(attention).forward, attention))
        return (clone,)


TESTS = Path(__file__).resolve().parents[2]


def _file(path: Path) -> Any:
    """A module of the tests, which are no package here."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _of_the_pack(name: str) -> Any:
    """A module of the pack under test, under the name that ComfyUI has given it."""
    pack = next(name for name, module in sys.modules.items() if name.endswith("ComfyUI-QVG") and module)
    return importlib.import_module(f"{pack}.{name}")


def _randomised(vae: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in vae.first_stage_model.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + name.endswith("gamma")
    return vae


def _wan_vae(width: int) -> Any:
    return comfy.sd.VAE(sd=_file(TESTS / "integration" / "tiny_vae.py").state_dict(width=width))


def _wan_2_2_vae() -> Any:
    """Core's class in small. The file of the real one has a size that core does not let vary."""
    vae = _wan_vae(8)
    shape = {"z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    vae.first_stage_model = comfy.ldm.wan.vae2_2.WanVAE(dim=8, dec_dim=16, **shape).eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, vae.device, mm.vae_offload_device())
    vae.latent_channels, vae.upscale_ratio, vae.upscale_index_formula = 48, (lambda a: max(0, a * 4 - 3), 16, 16), (4, 16, 16)
    return _randomised(vae)


def _hunyuan_1_5_vae() -> Any:
    """Core's class in small, for the same reason."""
    vae, target = _wan_vae(8), "comfy.ldm.hunyuan_video.vae_refiner."
    shape: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "z_channels": 32, "num_res_blocks": 2}
    shape |= {"block_out_channels": [16, 32, 32, 64, 64], "ffactor_spatial": 16, "ffactor_temporal": 4}
    shape |= {"downsample_match_channel": True, "upsample_match_channel": True}
    parts = {f"{part.lower()}_config": {"target": target + part, "params": shape} for part in ("Encoder", "Decoder")}
    regularizer = {"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"}
    vae.first_stage_model = AutoencodingEngine(regularizer_config=regularizer, **parts).eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, vae.device, mm.vae_offload_device())
    vae.latent_channels, vae.upscale_ratio, vae.upscale_index_formula = 32, (lambda a: max(0, a * 4 - 3), 16, 16), (4, 16, 16)
    vae.downscale_ratio, vae.downscale_index_formula = (lambda a: (a + 3) // 4, 16, 16), (4, 16, 16)
    return _randomised(vae)


VAES: dict[str, Any] = {
    "wan 2.1": lambda: _wan_vae(8),
    "wan 2.1 as wide as it is": lambda: _wan_vae(96),
    "wan 2.2": _wan_2_2_vae,
    "hunyuan 1.5": _hunyuan_1_5_vae,
    "pictures": lambda: _randomised(comfy.sd.VAE(sd={"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)})),
    "all at once": lambda: _randomised(
        comfy.sd.VAE(sd={"decoder.22.bias": torch.zeros(3), "decoder.1.weight": torch.zeros(256, 16, 3, 3)})
    ),
}


@_node(("VAE",), kind=(list(VAES),))
class TestingAnyVAE:
    def run(self, kind: str) -> Any:
        return (VAES[kind](),)


@_node(("LATENT",), shape=("STRING", {"default": "1,16,5,8,8"}), seed=("INT", {"default": 1}))
class TestingLatent:
    def run(self, shape: str, seed: int) -> Any:
        sizes = [int(size) for size in shape.split(",")]
        return ({"samples": torch.randn(sizes, generator=torch.Generator().manual_seed(seed))},)


@_node((), samples=("LATENT",), vae=("VAE",), tile=("INT", {"default": 0}), unload=("BOOLEAN", {"default": False}))
class TestingDecode:
    """The pack's pieces against core's decoder: how far they are apart, and how many bytes were alive at most. `unload`: after
    the first piece all weights leave the device, as under --lowvram."""

    OUTPUT_NODE = True

    def run(self, samples: Any, vae: Any, tile: int, unload: bool) -> Any:
        decode, live = _of_the_pack("nodes.comfy.decode"), _file(TESTS / "helpers.py").LiveBytes
        (latent,) = decode.split_batch(vae, samples["samples"])
        asked, honest = [], mm.load_models_gpu
        mm.load_models_gpu = lambda *some, **more: (asked.append(more.get("memory_required")), honest(*some, **more))
        pieces, pictures, cast = [], [], 0
        try:
            with live() as ours:
                for frames, piece in decode.decode_pieces(vae, latent, tile):
                    pieces.append((frames, len(piece)))
                    pictures.append(piece.numpy().copy())  # out of torch's sight: where pictures go is not what is measured
                    del piece
                    if unload:
                        vae.patcher.partially_unload(vae.patcher.offload_device, 1 << 40)
                        unload, cast = False, sum(bool(getattr(m, "comfy_cast_weights", 0)) for m in vae.patcher.model.modules())
        finally:
            mm.load_models_gpu = honest
        got = torch.cat([torch.from_numpy(piece) for piece in pictures])
        with live() as core:
            wanted = _core_decodes(vae, samples["samples"], latent, tile)
        said = {
            "pieces": pieces,
            "equal": torch.equal(got, wanted),
            "difference": float((got - wanted).abs().max()),
            "moves": float((wanted[1:] - wanted[:-1]).abs().mean()) if len(wanted) > 1 else 0.0,
            "peak": ours.peak,
            "core's peak": core.peak,
            "asked": asked,
            "cast layers": cast,
        }
        return {"ui": {"text": (json.dumps(said),)}}


def _core_decodes(vae: Any, samples: torch.Tensor, latent: torch.Tensor, tile: int) -> torch.Tensor:
    """[n, H, W, C]"""
    if tile:
        side = tile // vae.spacial_compression_decode()
        decoded = vae.decode_tiled_3d(latent, tile_t=999, tile_x=side, tile_y=side, overlap=(1, side // 4, side // 4))
        return decoded.movedim(1, -1)[0]
    decoded = vae.decode(samples)
    return decoded.reshape(-1, *decoded.shape[-3:])


@_node(("VAE",), vae=("VAE",), latent_pixels=("INT", {"default": 8}))
class TestingSmallMemory:
    """From its third piece on the decoder finds no memory for latents that are wider or higher than so much."""

    def run(self, vae: Any, latent_pixels: int) -> Any:
        passes = iter(range(1 << 30))

        def refuse(decoder: Any, inputs: Any) -> None:
            if max(inputs[0].shape[3:]) > latent_pixels and next(passes) >= 2:
                raise torch.cuda.OutOfMemoryError("there is no memory left")

        vae.first_stage_model.decoder.register_forward_pre_hook(refuse)
        return (vae,)


@_node(("VAE",), vae=("VAE",), model=("MODEL",))
class TestingWatch:
    """Notes what is alive of a run's cache whenever the decoder is at work. `model`: kept from being forgotten meanwhile."""

    def run(self, vae: Any, model: Any) -> Any:
        SAID["alive while decoding"] = []

        def note(decoder: Any, inputs: Any) -> None:
            gc.collect()
            SAID["alive while decoding"].append({name: count for name, count in _alive().items() if count})

        vae.first_stage_model.decoder.register_forward_pre_hook(note)
        return (vae,)


def _alive() -> dict[str, int]:
    """How many objects there are of the classes that a run's cache is made of."""
    names = [type(each).__name__ for each in gc.get_objects()]
    kinds = ("CausalRun", "KVCache", "LayerSlot", "ExactSpan", "QuantizedSpan", "TransformSpan", "StoredOnce", "WorldPlan")
    kinds += ("StudyCache",)
    return {name: names.count(name) for name in kinds}


@_node((), report=("QVG_REPORT",))
class TestingRecord:
    """A run's record in numbers, and what is alive of its cache now that it is over."""

    OUTPUT_NODE = True

    def run(self, report: Any) -> Any:
        gc.collect()
        said = {**dataclasses.asdict(report), "config": report.config.codec, "ratio": report.ratio, "left": _alive()}
        return {"ui": {"text": (json.dumps(said),)}}


@_node((), samples=("LATENT",))
class TestingSay:
    """What has been noted down, as text."""

    OUTPUT_NODE = True

    def run(self, samples: Any) -> Any:
        said = json.dumps(SAID)
        SAID.clear()
        logging.info("testing: %s", said)
        return {"ui": {"text": (said,)}}


@_node(("LATENT",), samples=("LATENT",))
class TestingRan:
    """Its input; the log says that it ran."""

    def run(self, samples: Any) -> Any:
        logging.info("testing: made the latent")
        return (samples,)


def _has_models(entry: Any) -> bool:
    slots = getattr(entry, "outputs", None) or []  # one of the caches has nodes' instances in it
    outputs = [output for slot in slots for output in (slot if isinstance(slot, list) else [slot])]
    return any(isinstance(output, comfy.model_patcher.ModelPatcher) for output in outputs)


@_node(())
class TestingForgetModels:
    """The execution cache loses its MODELs and keeps all else, as ComfyUI's default one does first when memory is short."""

    OUTPUT_NODE = True

    def run(self) -> Any:
        found = 0
        for cache in [each for each in gc.get_objects() if issubclass(type(each), BasicCache)]:
            for key in [key for key, entry in cache.cache.items() if _has_models(entry)]:
                del cache.cache[key]
                found += 1
        return {"ui": {"text": (str(found),)}}


@_node(("CONDITIONING",), seed=("INT", {"default": 1}), tokens=("INT", {"default": 24}), length=("INT", {"default": 512}))
class TestingPaddedPrompt:
    """As ComfyUI's text encoder of Wan gives it: filled up with zeros."""

    def run(self, seed: int, tokens: int, length: int) -> Any:
        prompt = torch.zeros(1, length, 4096)
        prompt[:, :tokens] = torch.randn(1, tokens, 4096, generator=torch.Generator().manual_seed(seed))
        return ([[prompt, {}]],)


@_node(("MODEL",), model=("MODEL",))
class TestingOtherCrossAttention:
    """As packs do that replace cross-attention of ComfyUI's own models; this one changes nothing."""

    def run(self, model: Any) -> Any:
        clone = model.clone()
        attention = clone.model.diffusion_model.blocks[1].cross_attn
        clone.add_object_patch(
            "diffusion_model.blocks.1.cross_attn.forward", types.MethodType(type(attention).forward, attention)
        )
        return (clone,)


@_node(("MODEL",), model=("MODEL",))
class TestingHomeElsewhere:
    """Offloaded spans live on a device that is called otherwise, as where there is a GPU; torch copies between the two."""

    def run(self, model: Any) -> Any:
        (pack,) = (module for name, module in sys.modules.items() if name.endswith(".qvg.cache.offload"))
        begin, clone = pack.Offloader.__init__, model.clone()

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            pack.Offloader.__init__ = lambda self, home: begin(self, "cpu:0")
            try:
                return executor(*args, **kwargs)
            finally:
                pack.Offloader.__init__ = begin

        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "testing home", wrapper)
        return (clone,)


@_node((), samples=("LATENT",), names=("STRING", {"default": ""}))
class TestingAlive:
    """How many objects of these classes there are."""

    OUTPUT_NODE = True

    def run(self, samples: Any, names: str) -> Any:
        gc.collect()
        alive = [type(each).__name__ for each in gc.get_objects()]
        return {"ui": {"text": (json.dumps({name: alive.count(name) for name in names.split(",")}),)}}


@_node(("*",), text=("STRING", {"default": "null"}))
class TestingValue:
    """Any value at all, told in JSON, as other packs' nodes hand over what a widget would not take."""

    def run(self, text: str) -> Any:
        return (json.loads(text),)


@_node(("*",))
class TestingSlow:
    """Stands for what takes long to make. It fails, so that a test knows that it was asked for."""

    def run(self) -> Any:
        raise RuntimeError("what takes long was made")


@_node((), anything=("*",))
class TestingSink:
    """An end for any node."""

    OUTPUT_NODE = True

    def run(self, anything: Any) -> Any:
        return {}


@_node(("IMAGE",), shape=("STRING", {"default": "[1, 64, 96, 3]"}), value=("FLOAT", {"default": 0.5}))
class TestingImage:
    """Pictures of any shape, all of one value; NaN where it is above 1. Each picture is a little brighter than the one before."""

    def run(self, shape: str, value: float) -> Any:
        size = json.loads(shape)
        image = torch.full(size, value if value <= 1 else float("nan"))
        return (image + 0.01 * torch.arange(size[0]).view(-1, *[1] * (len(size) - 1)) if size else image,)


@_node(("CONDITIONING",), conditioning=("CONDITIONING",), key=("STRING", {"default": ""}))
class TestingCarries:
    """As nodes of other models leave what their network reads: a tensor by the name `key`."""

    def run(self, conditioning: Any, key: str) -> Any:
        return ([[tokens, {**rest, key: torch.zeros(1, 16, 1, 8, 8)}] for tokens, rest in conditioning],)
