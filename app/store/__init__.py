"""The store: tables, engines, repositories and content-addressed files. Shared by the service and its workers."""
