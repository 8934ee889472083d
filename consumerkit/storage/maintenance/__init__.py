"""The statements of what runs on a timer: forgetting, ending what has stood too long, erasing."""
