# A TPU host: JAX with libtpu and the training half, as in constraints.txt. One image for every host of a slice.
# Built on a stand-in of its first line (Debian 13, Python 3.11.7 in /usr/local), 2.5 GB; never run on a TPU.
#   docker build -f configs/images/training.Dockerfile -t specexit .
FROM python:3.11-slim
COPY . /src
RUN python -m pip install --no-cache-dir --constraint /src/constraints.txt "/src[tpu]"
WORKDIR /run
ENTRYPOINT ["specexit"]
