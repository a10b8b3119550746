"""The devices that a program is traced for."""

from __future__ import annotations

import jax


def target_platform() -> str:
    """Such as "cpu" or "tpu": the current mesh's, which may be absent here, or jax's default."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend()
    platform: str = mesh.abstract_device.platform
    return platform


def on_one_cpu() -> bool:
    """Whether it is for a single CPU device, so that no array is sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = jax.device_count() if mesh.empty else mesh.size
    return target_platform() == "cpu" and devices == 1
