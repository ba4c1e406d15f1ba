# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors as RFC 9457 problem documents, with the fix and the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..store.base import StoreUnavailable

MEDIA_TYPE = "application/problem+json"


class ProblemDocument(BaseModel):
    """The body of each error."""

    type: str
    title: str
    status: int
    detail: str
    fix: str
    nearest: list[str]
    instance: str


class Problem(Exception):
    """An error that is answered as it is: detail says what is wrong, fix what to do about it."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        fix: str = "",
        nearest: Sequence[str] = (),
        kind: str = "about:blank",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fix = fix
        self.nearest = list(nearest)
        self.kind = kind
        self.headers = headers or {}


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that resemble the unknown one."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)


def unknown(what: str, name: str, names: Iterable[str], *, status: int = 404) -> Problem:
    """A problem for a name that does not exist: what is for example 'profile'."""
    names = sorted(names)
    near = nearest_names(name, names)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    fix = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"There are: {listed}."
        if names
        else f"There is no {what} yet."
    )
    return Problem(status, f"There is no {what} {name!r}.", fix=fix, nearest=near)


def no_live_view() -> Problem:
    """The problem of a store that is away. Its text is in the log: who sent the request may not be known yet."""
    return Problem(
        503,
        "There is no live view: the console's Redis does not answer.",
        fix="Start it again; the console then continues by itself. Its log says what is wrong.",
    )


def document_of(problem: Problem, request: Request) -> ProblemDocument:
    """What a request is answered that met with this problem."""
    return ProblemDocument(
        type=problem.kind,
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        fix=problem.fix,
        nearest=problem.nearest,
        instance=request.url.path,
    )


def answer(problem: Problem, request: Request) -> JSONResponse:
    """The answer to a request that met with this problem."""
    body = document_of(problem, request).model_dump()
    return JSONResponse(body, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have all errors of the application answered as problems."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return answer(error, request)

    @app.exception_handler(StoreUnavailable)
    async def _unavailable(request: Request, error: StoreUnavailable) -> JSONResponse:
        return answer(no_live_view(), request)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})), request)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(
            Problem(422, _described(jsonable_encoder(error.errors())), fix="See /docs for the shape."), request
        )

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        # The traceback is in the log. Its text may name files, so it is not answered.
        return answer(Problem(500, f"The console failed: {type(error).__name__}.", fix="Look at its log."), request)


def _described(errors: list[dict[str, Any]]) -> str:
    return "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in errors)
