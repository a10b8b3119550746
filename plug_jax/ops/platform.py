"""Which kind of device a program is traced for."""

from __future__ import annotations

import jax


def target_platform() -> str:
    """Such as "cpu" or "tpu": the mesh's in use, which need not be here; without one, jax's own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend()
    platform: str = mesh.abstract_device.platform
    return platform
