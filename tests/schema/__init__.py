"""Requests generated from the OpenAPI document, against the service in this process."""
