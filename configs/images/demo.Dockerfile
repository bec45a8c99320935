# `make demo` on any machine with two cores, nothing else installed.
# Built, and run with QUICK=1, on a stand-in of its first line (Debian 13, Python 3.11.7 in /usr/local); 5.3 GB.
#   docker build -f configs/images/demo.Dockerfile -t specexit-demo .
#   docker run -v "$PWD/runs:/src/runs" specexit-demo
FROM python:3.11-slim
# vLLM for CPUs loads libnuma, and torch compiles what it computes there.
RUN apt-get update && apt-get install --yes --no-install-recommends make gcc g++ libnuma1 \
  && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
RUN make .venv/.demo-ready
CMD ["make", "demo"]
