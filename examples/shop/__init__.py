"""One story, end to end: a click, its order, the stock, the payment, the mail and the points. See `README.md`."""
