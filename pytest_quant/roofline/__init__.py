"""What no run can be faster than: bytes over bandwidth, operations over the rate of the units. Knows no torch."""
