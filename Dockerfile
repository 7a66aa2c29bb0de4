# pad as a service: docker build -t pad . ; see docs/service.md
FROM python:3.12-slim
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY pad pad
COPY zoo zoo
# An index of torch without CUDA makes the image a tenth as large: --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; fi \
    && pip install --no-cache-dir ".[serve]" && rm -rf /src
RUN useradd --create-home pad
USER pad
WORKDIR /home/pad
EXPOSE 8000
ENTRYPOINT ["pad"]
CMD ["--help"]
