# docker build -f .ci/docker/cpu.Dockerfile -t calm .
FROM rust:1.95-bookworm AS build
WORKDIR /calm
COPY . .
RUN cargo build --locked --profile dist -p calm-cli

FROM debian:bookworm-slim
# The hub is asked over TLS, with the roots that the system trusts.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /calm/target/dist/calm /usr/local/bin/calm
WORKDIR /work
ENTRYPOINT ["calm"]
CMD ["--help"]
