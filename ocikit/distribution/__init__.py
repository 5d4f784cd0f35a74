"""A client of the OCI distribution protocol (distribution-spec v1.1) on aiohttp.

`transport` is the only module that knows aiohttp; `auth` holds challenges and tokens, `client` the protocol,
`repository` the view of one repository as everything else uses it.
"""
