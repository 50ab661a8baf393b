# docker build -f .ci/docker/cuda.Dockerfile -t calm:cuda .      run it with --gpus all
# nvcc is needed to build, CUDA's libraries to run; the driver is the machine's. No GPU is needed to build.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl git g++ && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.95
ENV PATH=/root/.cargo/bin:$PATH CUDA_HOME=/usr/local/cuda
WORKDIR /calm
COPY . .
RUN cargo build --locked --profile dist -p calm-cli --features cuda

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /calm/target/dist/calm /usr/local/bin/calm
WORKDIR /work
ENTRYPOINT ["calm"]
CMD ["--help"]
