"""What a run will take on a device, stated before anything is loaded: `plan(network, video, config) -> Plan`."""

from .estimate import MOST_LATENT_FRAMES, WEIGHT_BYTES, Plan, Video, Weights, pictures, plan

__all__ = ["MOST_LATENT_FRAMES", "WEIGHT_BYTES", "Plan", "Video", "Weights", "pictures", "plan"]
