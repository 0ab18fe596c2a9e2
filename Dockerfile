# The pipeline as an image. Data, the ledger and Dagster's history live in the volume /data.
FROM python:3.13-slim

RUN useradd --create-home nq && install -d -o nq /data
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY nq_pipeline ./nq_pipeline
RUN pip install --no-cache-dir --constraint constraints.txt ".[cluster]"

USER nq
WORKDIR /data
ENV NQ_DATA_DIR=/data
VOLUME /data
ENTRYPOINT ["nq"]
CMD ["run"]
