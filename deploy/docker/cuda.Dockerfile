# The worker for NVIDIA GPUs, linux/amd64: `make image-cuda`. Without a GPU it computes on the CPU, with the best kernels for it.
# Not built by the project's CI, which reaches no image of nvidia/cuda: see docs/images.md.
ARG CUDA_VERSION=12.8.1
ARG UBUNTU_VERSION=24.04

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu${UBUNTU_VERSION} AS build
# Where packages come from, if not from pip's defaults.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++-14 gcc-14 ninja-build python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV CC=gcc-14 CXX=g++-14 CUDAHOSTCXX=g++-14
WORKDIR /build
COPY constraints.txt .
COPY deploy/llama/router-only.cmake .
# As in Dockerfile, and a library of kernels for GPUs. The driver's libcuda comes with the node, so nothing may insist on it here.
ENV CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/build/router-only.cmake \
 -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_CUDA=ON \
 -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined \
 -DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON -DCMAKE_INSTALL_BINDIR=llama_cpp/lib -DCMAKE_INSTALL_LIBDIR=llama_cpp/lib"
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir wheels llama-cpp-python \
 && python3 -m venv --without-pip /opt/pointsman
COPY pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY worker worker
RUN pip --python /opt/pointsman/bin/python install --no-cache-dir --constraint constraints.txt wheels/*.whl '.[tracing]'

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu${UBUNTU_VERSION}
LABEL org.opencontainers.image.title="Pointsman worker, CUDA" \
      org.opencontainers.image.description="Routes queries from a Redis stream to the stream of their category, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 python3 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 10001 -g 10001 /var/cache/pointsman
COPY --from=build /opt/pointsman /opt/pointsman
COPY deploy/docker/healthcheck.py /opt/pointsman/
ENV PATH=/opt/pointsman/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    POINTSMAN_MODEL=/models/model.gguf \
    POINTSMAN_CACHE_DIR=/var/cache/pointsman \
    POINTSMAN_HTTP_HOST=0.0.0.0 \
    POINTSMAN_HTTP_PORT=8080
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/opt/pointsman/healthcheck.py"]
ENTRYPOINT ["python", "-m", "worker"]
CMD ["run"]
