"""S3: objects of a bucket under a prefix, through boto3, which also finds the credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from gamut.remote import Remote
from gamut.remote.place import without_secrets
from gamut.remote.store import BLOCK, Answer, Changed, Passing, Refused, failure, span


class S3:
    """A prefix of a bucket, read anonymously where there are no credentials."""

    ranges = True

    def __init__(self, base: str, settings: Remote) -> None:
        import boto3  # takes over half a second to import
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

        parts = urlsplit(base)
        self.bucket, self.prefix = parts.netloc, parts.path.lstrip("/")
        self._refusal, self._failure, self._no_credentials = ClientError, BotoCoreError, NoCredentialsError
        self._broken = (HTTPClientError, BotoCoreError, OSError)
        session = boto3.session.Session()
        config = Config(
            connect_timeout=settings.timeout_seconds,
            read_timeout=settings.timeout_seconds,
            retries={"total_max_attempts": 1},  # we count our own tries
            signature_version=UNSIGNED if session.get_credentials() is None else None,
        )
        self._client: Any = session.client(
            "s3",
            endpoint_url=settings.s3_endpoint or None,
            config=config,
            region_name=session.region_name or "us-east-1",
        )

    def names(self) -> list[str]:
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"
            )
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        except (self._refusal, self._failure) as error:
            raise self._named(error) from None
        return sorted(key.removeprefix(self.prefix) for key in keys if key != self.prefix)

    @contextmanager
    def get(self, name: str, begin: int, end: int | None, etag: str | None) -> Iterator[Answer]:
        asked: dict[str, str] = {}
        if begin or end is not None:
            asked["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        if etag:
            asked["IfMatch"] = etag
        try:
            found = self._client.get_object(Bucket=self.bucket, Key=self.prefix + name, **asked)
        except (self._refusal, self._failure) as error:
            raise self._named(error) from None
        body = found["Body"]
        try:
            got = span(found.get("ContentRange"))
            if "Range" in asked and (got is None or got[0] != begin or (end is not None and got[1] != end)):
                raise Changed(f"the server sent {found.get('ContentRange') or 'the whole file'}")
            yield Answer(got[2] if got else found.get("ContentLength"), found.get("ETag"), self._blocks(body))
        finally:
            body.close()

    def _blocks(self, body: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError  # what boto3 lets through of its own connections

        try:
            while block := body.read(BLOCK):
                yield block
        except (*self._broken, HTTPError) as error:
            raise Passing(without_secrets(f"the connection failed: {error}")) from None

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, self._refusal):
            about: Any = error.response  # type: ignore[attr-defined]
            code = about.get("Error", {}).get("Code", "")
            return failure(int(about.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)), code)
        if isinstance(error, self._no_credentials):
            return Refused("boto3 finds no credentials")
        return Passing(without_secrets(f"the connection failed: {error}"))
