"""A small real LLaVA checkpoint, assembled from pretrained parts that ship in packages."""

from atp_models.demo.build import build_demo_checkpoint
from atp_models.demo.parts import default_cache_dir
from atp_models.demo.photo import demo_photo

__all__ = ["build_demo_checkpoint", "default_cache_dir", "demo_photo"]
