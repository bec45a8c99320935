# A TPU host: JAX with libtpu and the training half, as in constraints.txt. One image for every host of a slice.
# This image was not built so far; a test reads this file.
#   docker build -f configs/images/training.Dockerfile -t specexit .
FROM python:3.11-slim
COPY . /src
RUN python -m pip install --no-cache-dir --constraint /src/constraints.txt "/src[tpu]"
WORKDIR /run
ENTRYPOINT ["specexit"]
