// Package browser looks at the status page as a person does: in Chromium, by the keyboard, in light and in dark.
package browser

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Tab is a tab of a browser that writes down what a page should not do. Pages run no scripts in it; what is evaluated here
// runs all the same.
type Tab struct {
	ctx  context.Context
	base string

	mu sync.Mutex
	// faults are errors and warnings of the console, exceptions, and requests that failed.
	faults []string
	// outside are the requests to anywhere else.
	outside []string
	weights map[network.RequestID]float64
	paths   map[network.RequestID]string
}

// Look is how the tab is: its width and height in CSS pixels, and whether the reader likes it dark.
type Look struct {
	Width, Height int64
	Dark          bool
}

// Open starts a browser ($BROWSER, else chromium) with one tab for the pages below base. The browser ends with ctx, or when
// done is called.
func Open(ctx context.Context, base string, l Look) (t *Tab, done func(), err error) {
	program := os.Getenv("BROWSER")
	if program == "" {
		program = "chromium"
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.DisableGPU)
	if os.Geteuid() == 0 { // root has no sandbox in Chromium
		options = append(options, chromedp.NoSandbox)
	}
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	ctx, closeTab := chromedp.NewContext(ctx)
	t = &Tab{ctx: ctx, base: base, weights: map[network.RequestID]float64{}, paths: map[network.RequestID]string{}}
	done = func() { closeTab(); stop() }
	err = errors.Join(chromedp.Do(ctx), chromedp.Listen(ctx, t.hear)) // the first use starts the browser
	if err == nil {
		err = errors.Join(call(t, network.Enable, network.EnableParams{}), call(t, log.Enable, cdp.Empty{}),
			call(t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}), t.Be(l))
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("start %s: %w", program, err)
	}
	return t, done, nil
}

// Be makes the tab look so.
func (t *Tab) Be(l Look) error {
	scheme := "light"
	if l.Dark {
		scheme = "dark"
	}
	return errors.Join(
		call(t, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.Width, Height: l.Height, DeviceScaleFactor: 1}),
		call(t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}))
}

// patience is how long a tab gets for one thing.
const patience = time.Minute

func call[P, R any](t *Tab, c cdp.Command[P, R], params P) error {
	_, err := get(t, func(ctx context.Context, _ *chromedp.Target) (R, error) { return chromedp.Call(ctx, c, params) })
	return err
}

func get[T any](t *Tab, a chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, a)
}

// Go goes to a path and waits until the page is there.
func (t *Tab) Go(path string) error {
	if _, err := get(t, chromedp.Navigate(t.base+path)); err != nil {
		return fmt.Errorf("go to %s: %w", path, err)
	}
	return nil
}

// Press presses keys.
func (t *Tab) Press(keys string) error {
	_, err := get(t, chromedp.KeyEvent(keys))
	return err
}

// PressAndGo presses keys that lead to another page, and waits until it is there.
func (t *Tab) PressAndGo(keys string) error {
	if err := t.next(chromedp.KeyEvent(keys)); err != nil {
		return fmt.Errorf("nothing came of %q: %w", keys, err)
	}
	return nil
}

// Next waits until the page is loaded again by itself.
func (t *Tab) Next() error {
	return t.next(func(context.Context, *chromedp.Target) (v chromedp.Void, err error) { return v, nil })
}

func (t *Tab) next(trigger chromedp.Action[chromedp.Void]) error {
	_, err := get(t, chromedp.WaitEvent(page.LoadEventFired, nil, trigger))
	return err
}

// axTree is what a screen reader gets.
func axTree(ctx context.Context, _ *chromedp.Target) (accessibility.GetFullAXTreeResult, error) {
	return chromedp.Call(ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
}

// Eval gives what an expression of JavaScript comes to.
func Eval[T any](t *Tab, expression string) (T, error) {
	v, err := get(t, chromedp.Evaluate[T](expression))
	if err != nil {
		return v, fmt.Errorf("evaluate %.80s: %w", expression, err)
	}
	return v, nil
}

// Picture is the visible part of the page: png, or webp.
func (t *Tab) Picture(format page.CaptureScreenshotFormat) ([]byte, error) {
	params := page.CaptureScreenshotParams{Format: format}
	if format == page.CaptureScreenshotFormatWebp {
		params.Quality = new(int64(80))
	}
	r, err := get(t, func(ctx context.Context, _ *chromedp.Target) (page.CaptureScreenshotResult, error) {
		return chromedp.Call(ctx, page.CaptureScreenshot, params)
	})
	return r.Data, err
}

// hear is told what the page does.
func (t *Tab) hear(event any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		t.faults = append(t.faults, fmt.Sprintf("console: %s", e.Type))
	case *runtime.EventExceptionThrown:
		t.faults = append(t.faults, "exception: "+e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		t.faults = append(t.faults, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *network.EventLoadingFailed:
		if !e.Canceled {
			t.faults = append(t.faults, fmt.Sprintf("%s of %s: %s", e.Type, t.paths[e.RequestID], e.ErrorText))
		}
	case *network.EventRequestWillBeSent:
		t.request(e)
	case *network.EventLoadingFinished:
		t.weights[e.RequestID] = e.EncodedDataLength
	}
}

func (t *Tab) request(e *network.EventRequestWillBeSent) {
	u, err := url.Parse(e.Request.URL)
	if err == nil && u.Scheme == "data" {
		return
	}
	t.paths[e.RequestID] = strings.TrimPrefix(e.Request.URL, t.base)
	if !strings.HasPrefix(e.Request.URL, t.base+"/") {
		t.outside = append(t.outside, e.Request.URL)
	}
}

// Faults are what went wrong so far, and the requests that went elsewhere.
func (t *Tab) Faults() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := append([]string{}, t.faults...)
	for _, u := range t.outside {
		list = append(list, "a request to elsewhere: "+u)
	}
	return list
}

// Weights are the bytes of each answer on the wire, head and body, by path.
func (t *Tab) Weights() map[string]float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := map[string]float64{}
	for id, w := range t.weights {
		if path, ours := t.paths[id]; ours {
			list[path] = max(list[path], w)
		}
	}
	return list
}
