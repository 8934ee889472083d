"""`make shop`: orders through `examples/shop`, with kills anywhere and services that fail, and then the books."""
