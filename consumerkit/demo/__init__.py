"""`consumerkit demo`: payments, resends, poison and kills, and then the books."""
