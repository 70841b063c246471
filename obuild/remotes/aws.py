"""Clients of AWS, and of others with its interfaces; and what their errors mean.

boto3 finds credentials and the region as AWS's own tools do: in the environment, in ~/.aws, from the instance.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from obuild.errors import ObuildError, UsageError

#: What to do about an error, by its code. HEAD requests have no body, so there only the status is known.
_HINTS = {
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired"),
        "the credentials have expired: get new ones, for example by `aws sso login`",
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure", "UnrecognizedClientException"),
        "check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    **dict.fromkeys(
        ("403", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "Forbidden"),
        "these credentials have no right to it, or are wrong or expired",
    ),
    **dict.fromkeys(
        ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        "it is in another region: set AWS_REGION",
    ),
    **dict.fromkeys(("404", "NoSuchBucket"), "make the bucket first; obuild makes none"),
}


def client(service: str, region: str = "", *, attempts: int = 6) -> Any:
    """A client of a service, which sends a request up to so many times.

    UsageError if boto3 is missing, or no region is set that the service needs.
    """
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UsageError("the Python package boto3 is missing", hint="pip install 'obuild[publish]'") from None
    settings = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=64,
        # Not every server with S3's interface knows its newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _descriptions())
        session = boto3.Session(botocore_session=core)
        made = session.client(service, region_name=region or None, config=settings)
        if service == "s3" and "amazonaws.com" not in made.meta.endpoint_url:
            # Only AWS is sure to have a host name for each bucket.
            path = settings.merge(Config(s3={"addressing_style": "path"}))
            made = session.client(service, region_name=region or None, config=path)
    except (BotoCoreError, ValueError) as error:
        hint = "set AWS_REGION, or a region in ~/.aws/config" if "region" in str(error) else ""
        raise UsageError(f"cannot use AWS: {error}", hint=hint) from error
    return made


@cache
def _descriptions() -> Any:
    """The descriptions of AWS's services: EC2's alone takes a third of a second to read."""
    from botocore.loaders import Loader

    return Loader()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the errors of a client into an ObuildError that says what was wanted, and what to do."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = code_of(error)
        message = error.response.get("Error", {}).get("Message", "")
        raise ObuildError(f"{what}: {code}: {message}".rstrip(": "), hint=_HINTS.get(code, "")) from error
    except NoCredentialsError as error:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise ObuildError(f"{what}: there are no credentials", hint=hint) from error
    except (BotoCoreError, Boto3Error) as error:
        raise ObuildError(f"{what}: {error}", hint="try again later: it goes on where it ended") from error


def encoded(digest: bytes) -> str:
    """A digest as AWS wants it in a request: base64."""
    return base64.b64encode(digest).decode()


def code_of(error: Any) -> str:
    """The code of a ClientError, such as NoSuchBucket or 404."""
    return str(error.response.get("Error", {}).get("Code", ""))
