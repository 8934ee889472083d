"""Messages that wait for their next attempt, and those that wait behind them."""
