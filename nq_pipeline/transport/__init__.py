"""How any vendor is asked: cache, rate limit, retries, bounds and circuit breaker."""
