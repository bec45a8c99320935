# A TPU host: JAX with libtpu and the training half. One image for every host of a slice.
#   docker build -f configs/images/training.Dockerfile -t specexit .
FROM python:3.12-slim
COPY . /src
RUN python -m pip install --no-cache-dir "/src[tpu]"
WORKDIR /run
ENTRYPOINT ["specexit"]
