"""The demo world: a small trained model, and the painted maps that it walks over."""

from .network import STEP_PIXELS, WEIGHTS, DemoWorld, DemoWorldConfig, DemoWorldDenoiser, load_demo_world, read_demo_world

__all__ = [
    "STEP_PIXELS",
    "WEIGHTS",
    "DemoWorld",
    "DemoWorldConfig",
    "DemoWorldDenoiser",
    "load_demo_world",
    "read_demo_world",
]
