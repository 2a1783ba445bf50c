# An image that trains and predicts, with or without an NVIDIA GPU. docs/docker.md has the commands.
#
#   docker build --tag xtconsistency .
#   docker build --tag xtconsistency:cpu --build-arg BASE=debian:13-slim --build-arg TORCH=cpu .
#
# The base is NVIDIA's smallest: it adds what the container toolkit needs to hand in the GPU, and
# refuses a driver that is too old. CUDA's libraries come with torch's wheels, in the versions
# that torch was built with; a larger base would hold them twice.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

# ---- the environment, built by tools that the image itself does not need ----
# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG TORCH=cuda
ARG UV_VERSION=0.13.8
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /uv && /uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}"
ENV PATH=/uv/bin:$PATH UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON=/usr/bin/python3
WORKDIR /xtconsistency
COPY pyproject.toml uv.lock requirements.txt build-constraints.txt ./
# The versions of uv.lock either way (requirements.txt is an export of it). PyTorch's wheels
# without CUDA are in an index of their own, which the lock does not know.
RUN --mount=type=cache,target=/root/.cache/uv \
    case "${TORCH}" in \
      cuda) uv sync --frozen --no-dev ;; \
      cpu) uv venv \
           && sed -E '/^(nvidia-|cuda-|triton)/d' requirements.txt >/tmp/requirements.txt \
           && uv pip install --python .venv --torch-backend cpu \
                --build-constraint build-constraints.txt --requirement /tmp/requirements.txt ;; \
      *) echo "TORCH is cuda or cpu, not ${TORCH}" >&2; exit 1 ;; \
    esac
# Visdom fetches the scripts of its page at its first start, into a folder that only root may
# write to: so they are fetched here. Without them all works but that page.
RUN .venv/bin/python -c 'from visdom.server.build import download_scripts; download_scripts()' \
    || echo "Visdom's scripts could not be fetched: its page will be empty" >&2

# ---- the image ----
# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 xtc
WORKDIR /xtconsistency
COPY --from=build /xtconsistency/.venv .venv
COPY . .
# What runs write, open to any user that `docker run --user` names; the program itself is not.
RUN install --directory --mode=1777 data data_rooms models results
# HOME: Visdom, matplotlib and torch keep files there, and a user named by number has none.
ENV PATH=/xtconsistency/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8097
CMD ["python", "-m", "train", "--help"]
