package healthz

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// slowPage takes so long, says how often it was made, and how often at once.
type slowPage struct {
	takes      time.Duration
	mu         sync.Mutex
	made       int
	now, most  int
	panicsOnce bool
}

func (p *slowPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.made++
	p.now++
	p.most = max(p.most, p.now)
	text, panics := fmt.Sprint(p.made, " ", r.Header.Get("Accept")), p.panicsOnce
	p.panicsOnce = false
	p.mu.Unlock()
	time.Sleep(p.takes)
	p.mu.Lock()
	p.now--
	p.mu.Unlock()
	if panics {
		panic("a mistake")
	}
	w.Header().Set("X-Made", "yes")
	_, _ = w.Write([]byte(text))
}

// scraped asks, and gives the answer with how long it took.
func scraped(h http.Handler, accept string) (w *httptest.ResponseRecorder, took time.Duration) {
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", accept)
	w = httptest.NewRecorder()
	began := time.Now()
	h.ServeHTTP(w, r)
	return w, time.Since(began)
}

// However many scrape, it costs a fifth of a processor; one who scrapes now and then does not wait, and each gets a page that was begun
// after he had asked (row B72).
func TestScrapesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := &slowPage{takes: 20 * time.Millisecond}
		h := newScrapes(page, zap.NewNop())
		if w, took := scraped(h, "text"); w.Body.String() != "1 text" || w.Header().Get("X-Made") != "yes" || took != page.takes {
			t.Errorf("%q after %s", w.Body, took)
		}
		time.Sleep(15 * time.Second)
		var all sync.WaitGroup
		began := time.Now()
		for i := range 1000 { // a hundred a second, for ten seconds
			all.Go(func() {
				page.mu.Lock()
				before := page.made
				page.mu.Unlock()
				w, took := scraped(h, []string{"text", "protobuf"}[i%2])
				made, accept := 0, ""
				if fmt.Sscan(w.Body.String(), &made, &accept); made <= before || accept != []string{"text", "protobuf"}[i%2] || w.Code != 200 {
					t.Errorf("asked when %d were made, and got %q", before, w.Body)
				}
				if took > 400*time.Millisecond {
					t.Errorf("an answer after %s", took)
				}
			})
			time.Sleep(10 * time.Millisecond)
		}
		all.Wait()
		busy := time.Duration(page.made) * page.takes
		if share := float64(busy) / float64(time.Since(began)); share > 0.21 || share < 0.15 || page.most != 1 {
			t.Errorf("%d pages for 1,001 scrapes: %.2f of the time, %d at once", page.made, share, page.most)
		}
	})
}

// A page that takes long is waited for at most a quarter of a second longer; one that fails is nobody else's trouble, and neither is
// who goes away (row B72).
func TestScrapesGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := &slowPage{takes: 3 * time.Second, panicsOnce: true}
		core, logs := observer.New(zapcore.ErrorLevel)
		h := newScrapes(page, zap.New(core))
		if w, _ := scraped(h, ""); w.Code != http.StatusInternalServerError {
			t.Errorf("a page that fails: %d", w.Code)
		}
		if said := logs.FilterField(zap.Any("panic", "a mistake")).Len(); said != 1 || logs.Len() != 1 {
			t.Errorf("it was said %d times, in %d lines", said, logs.Len())
		}
		if w, took := scraped(h, ""); w.Code != 200 || took != page.takes+mostRest {
			t.Errorf("%d after %s", w.Code, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
		go func() { time.Sleep(time.Second); cancel() }()
		began := time.Now()
		if h.ServeHTTP(httptest.NewRecorder(), r); time.Since(began) != time.Second {
			t.Errorf("who goes away waits for %s", time.Since(began))
		}
		if w, _ := scraped(h, ""); w.Code != 200 || w.Body.String() != "4 " && w.Body.String() != "3 " {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	})
}
