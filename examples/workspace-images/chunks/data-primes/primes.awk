# The sieve of Eratosthenes: every prime up to `limit`, one per line.
BEGIN {
    for (candidate = 2; candidate <= limit; candidate++) {
        if (candidate in composite) continue
        print candidate
        for (multiple = candidate * candidate; multiple <= limit; multiple += candidate) composite[multiple]
    }
}
