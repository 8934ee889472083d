"""The statements of work on a timer: forgetting, ending what has waited too long, erasing."""
