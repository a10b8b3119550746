"""The announcement's claims, tested on a very small PLUG: `make claims`, docs/claims.md."""
