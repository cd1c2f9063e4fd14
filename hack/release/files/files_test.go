package files

import "testing"

func TestSourceDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	if at, err := SourceDate(); err != nil || at.Unix() != 86400 {
		t.Errorf("%s, %v", at, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := SourceDate(); err == nil {
		t.Error("yesterday is no time")
	}
}
