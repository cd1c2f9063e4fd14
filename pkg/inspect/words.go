package inspect

import (
	"fmt"
	"strconv"
	"time"
)

// Bytes prints an amount with its unit, in three digits.
func Bytes(n uint64) string {
	v, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for v >= 999.5 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i > 0 && v < 9.95 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

// Span prints how long something takes or took, in its two largest units; below a second in ms.
func Span(d time.Duration) string {
	d = max(d, 0)
	for _, u := range []struct {
		large, small time.Duration
		a, b         string
	}{{24 * time.Hour, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d >= u.large {
			text := strconv.Itoa(int(d/u.large)) + u.a
			if rest := int(d % u.large / u.small); rest > 0 {
				text += strconv.Itoa(rest) + u.b
			}
			return text
		}
	}
	if d < time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return strconv.Itoa(int(d/time.Second)) + " s"
}

// Percent prints a share of one. What is there is never 0.
func Percent(share float64) string {
	if share > 0 && share < 0.01 {
		return "<1 %"
	}
	return strconv.Itoa(int(share*100+0.5)) + " %"
}
