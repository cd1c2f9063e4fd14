package healthz

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// scrapes bounds what scrapes cost, however many there are: one page is made at a time, and after it the next one waits for four
// times as long as it took, so that they have a fifth of a processor at most. Whoever asks meanwhile in the same way gets the same
// page. It is made after they have asked: what they read is as new as ever.
type scrapes struct {
	page http.Handler
	log  *zap.Logger
	turn chan struct{} // holds a token while a page is made

	mu   sync.Mutex
	next map[string]*scrape // by how it is asked for: those that are not begun
	rest time.Time          // until then none is begun; it belongs to who has the turn
}

// Bounds of the wait between two pages.
const (
	scrapeRest = 4                      // times what the last one took
	mostRest   = 250 * time.Millisecond // on a machine so busy that a page takes long, waiting longer helps nobody
)

// scrape is a page for all who wait for it.
type scrape struct {
	done   chan struct{}
	header http.Header
	code   int
	body   bytes.Buffer
}

func newScrapes(page http.Handler, log *zap.Logger) *scrapes {
	return &scrapes{page: page, log: log, turn: make(chan struct{}, 1), next: map[string]*scrape{}}
}

// ServeHTTP implements [http.Handler].
func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	is := s.join(r)
	select {
	case <-is.done:
	case <-r.Context().Done():
		return
	}
	maps.Copy(w.Header(), is.header)
	w.WriteHeader(is.code)
	_, _ = w.Write(is.body.Bytes()) // who asked may be gone
}

// join gives the page that is to be made next, for who asks in this way.
func (s *scrapes) join(r *http.Request) *scrape {
	key := r.Method + "\n" + r.URL.RawQuery + "\n" + r.Header.Get("Accept") + "\n" + r.Header.Get("Accept-Encoding")
	s.mu.Lock()
	defer s.mu.Unlock()
	is, waits := s.next[key]
	if !waits {
		is = &scrape{done: make(chan struct{}), header: http.Header{}, code: http.StatusOK}
		s.next[key] = is
		go s.make(is, key, r.Clone(context.WithoutCancel(r.Context())))
	}
	return is
}

// make makes a page when it is its turn. Who asks once it has begun waits for the one after it.
func (s *scrapes) make(is *scrape, key string, r *http.Request) {
	defer close(is.done)
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	time.Sleep(time.Until(s.rest))
	s.mu.Lock()
	delete(s.next, key)
	s.mu.Unlock()
	began := time.Now()
	defer func() {
		if p := recover(); p != nil { // of a collector: nobody else's trouble
			is.code = http.StatusInternalServerError
			is.body.Reset()
			s.log.Error("a scrape has no answer: a collector of metrics panicked", zap.Any("panic", p), zap.Stack("stack"))
		}
		s.rest = time.Now().Add(min(scrapeRest*time.Since(began), mostRest))
	}()
	s.page.ServeHTTP(is, r)
}

// Header implements [http.ResponseWriter].
func (s *scrape) Header() http.Header { return s.header }

// WriteHeader implements [http.ResponseWriter].
func (s *scrape) WriteHeader(code int) { s.code = code }

// Write implements [http.ResponseWriter].
func (s *scrape) Write(b []byte) (int, error) { return s.body.Write(b) }
