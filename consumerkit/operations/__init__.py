"""What a person does to a handler: moves its position, erases what is stored of a key."""
