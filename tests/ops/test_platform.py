"""Which devices a program is traced for."""

import jax
import pytest

from plug_jax.ops.platform import on_one_cpu, target_platform


def test_of_a_program_it_is_its_mesh():
    seen = []

    def program(x):
        seen.append((target_platform(), on_one_cpu()))
        return x

    for devices in (1, 2):
        with jax.set_mesh(jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])):
            jax.jit(program)(1.0)
    assert seen == [("cpu", True), ("cpu", False)]


@pytest.mark.parametrize(("devices", "one"), [(1, True), (2, False)])
def test_without_a_mesh_it_is_all_devices(monkeypatch, devices, one):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert on_one_cpu() is one
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not on_one_cpu()
