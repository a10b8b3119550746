# plug-jax for Cloud TPU; for NVIDIA GPUs `--build-arg ACCELERATOR=cuda12` (or cuda13), for a CPU
# `--build-arg ACCELERATOR=cpu`. How to build and run it: docs/tpu.md.
FROM python:3.11-slim

# An extra of the jax package; the release of jax, and all else, is that of constraints.txt.
ARG ACCELERATOR=tpu

WORKDIR /opt/plug-jax
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY plug_jax plug_jax
COPY tasks tasks
COPY gin_configs gin_configs
RUN pip install --no-cache-dir -c constraints.txt "jax[${ACCELERATOR}]" '.[cache,clean]'

WORKDIR /work
ENV PYTHONUNBUFFERED=1
CMD ["plug-jax", "--help"]
