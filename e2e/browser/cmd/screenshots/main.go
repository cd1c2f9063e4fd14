// Screenshots writes the pictures of docs/status-page.md: the status page of a node that serves 10,000 Services.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/chromedp/cdproto/page"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/browser"
)

// pictures are what is shown, each in light and in dark.
var pictures = []struct {
	name, path string
	look       browser.Look
}{
	{"list", "/", browser.Look{Width: 1280, Height: 860}},
	{"service", "/services/shop/cart", browser.Look{Width: 1280, Height: 860}},
	{"packet", "/packet?client=198.51.100.7&to=10.96.0.81:80", browser.Look{Width: 1280, Height: 860}},
	{"phone", "/", browser.Look{Width: 400, Height: 860}},
}

func main() {
	to := flag.String("to", "docs", "directory to write to")
	format := flag.String("format", "webp", "webp or png")
	services := flag.Int("services", 10000, "how many Services there are")
	flag.Parse()
	if err := run(*to, page.CaptureScreenshotFormat(*format), *services); err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

func run(to string, format page.CaptureScreenshotFormat, services int) error {
	base, done, err := browser.Serve(services)
	if err != nil {
		return err
	}
	defer done()
	tab, closeTab, err := browser.Open(context.Background(), base, pictures[0].look)
	if err != nil {
		return err
	}
	defer closeTab()
	for _, p := range pictures {
		for _, dark := range []bool{false, true} {
			look, name := p.look, "status-page-"+p.name
			if look.Dark = dark; dark {
				name += "-dark"
			}
			if err := tab.Be(look); err != nil {
				return err
			}
			if err := tab.Go(p.path); err != nil {
				return err
			}
			image, err := tab.Picture(format)
			if err != nil {
				return fmt.Errorf("take a picture of %s: %w", p.path, err)
			}
			file := filepath.Join(to, name+"."+string(format))
			if err := os.WriteFile(file, image, 0o644); err != nil {
				return err
			}
			fmt.Printf("%s: %d kB\n", file, (len(image)+500)/1000)
		}
	}
	return nil
}
