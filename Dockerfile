# One image for the three services and the migrations. What it runs is its argument:
#   services.issuer, services.ledger, services.dlq, migrations
#
#   docker build -t localhost/firstcome:dev .
#   buildah bud -t localhost/firstcome:dev .
#
# BASE_IMAGE: any Debian with python3 (3.11 or later) and its venv. Where pip needs to be told where the wheels are, say
# so by the build arguments below, by a pip.conf in BASE_IMAGE or, if there is a password in it, by a secret, and so too
# if the index has a certificate of an authority of your own:
#   --secret id=pip.conf,src=<file>   --secret id=ca.pem,src=<file>
# SOURCE_DATE_EPOCH is the time of every file. `buildah bud --timestamp N`, or buildx with rewrite-timestamp=true, takes
# the builder's own times out as well: then the same sources and base give the same image, bit for bit.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_PROXY
ARG PIP_DEFAULT_TIMEOUT=60
COPY requirements.txt /build/
RUN --mount=type=secret,id=pip.conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    if [ -e /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi \
    && if [ -e /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
    && python3 -m venv /build/tools \
    && python3 -m venv --without-pip /opt/firstcome/venv \
    && /build/tools/bin/python -m pip --python /opt/firstcome/venv/bin/python install --require-hashes \
       --only-binary :all: --no-compile --no-cache-dir --disable-pip-version-check -r /build/requirements.txt
COPY services /opt/firstcome/app/services
COPY migrations /opt/firstcome/app/migrations
COPY protos /opt/firstcome/app/protos
COPY deploy/image/rootfs.py /build/
ARG SOURCE_DATE_EPOCH=0
RUN PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} python3 -I /build/rootfs.py /rootfs /opt/firstcome

# Not from BASE_IMAGE: neither shell nor package manager nor compiler come along.
FROM scratch
COPY --from=build /rootfs/ /
ENV PATH=/opt/firstcome/venv/bin \
    PYTHONPATH=/opt/firstcome/app:/opt/firstcome/app/protos \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LANG=C.UTF-8
WORKDIR /opt/firstcome/app
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["services.issuer"]
