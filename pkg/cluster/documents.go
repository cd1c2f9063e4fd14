package cluster

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// parsed is what the text of a file says.
type parsed struct {
	objects  []*object // in the order of the file, unique
	good     int       // documents that could be used, if only in part
	bad      bool      // there may be more objects than could be understood
	troubles []Trouble
}

// parser reads one file.
type parser struct {
	file    string
	opt     Options
	out     parsed
	seen    map[objectKey]int // document that defined it
	ignored map[string]bool   // kinds
	found   troubles
	number  int // of the document being read
	line    int // on which it starts
}

// parseFile reads documents of YAML or JSON. It never fails as a whole: what
// cannot be used is named and the rest counts.
func parseFile(name string, data []byte, opt Options) parsed {
	p := &parser{file: name, opt: opt, seen: map[objectKey]int{}, ignored: map[string]bool{}}
	splitDocuments(data, func(text []byte, line int) {
		p.line = line
		if text[0] == '{' && p.jsonDocuments(text) {
			return
		}
		if p.list(text) {
			return
		}
		p.number++
		js, err := yamlToJSON(text)
		if err != nil {
			p.fail("", onLines(err, line-1))
			return
		}
		p.document(js)
	})
	p.out.troubles = p.found.all()
	return p.out
}

// fail notes that the document being read, or one object of it, is bad.
func (p *parser) fail(object string, err error) {
	p.out.bad = true
	p.trouble(object, TroubleDocument, err.Error())
}

func (p *parser) trouble(object, reason, message string) {
	p.found.add(Trouble{
		File: p.file, Document: p.number, Line: p.line,
		Object: object, Reason: reason, Message: message,
	})
}

// jsonDocuments reads JSON values one after another. False: not JSON at all,
// which may still be YAML that begins with a brace.
func (p *parser) jsonDocuments(text []byte) bool {
	dec := stdjson.NewDecoder(bytes.NewReader(text))
	start := p.line
	for first := true; ; first = false {
		var js stdjson.RawMessage
		err := dec.Decode(&js)
		if errors.Is(err, io.EOF) && !first {
			return true
		}
		if err != nil && first && filepath.Ext(p.file) != ".json" {
			return false
		}
		p.number++
		p.line = start + bytes.Count(text[:int(dec.InputOffset())-len(js)], []byte("\n"))
		if err != nil {
			p.fail("", err)
			return true
		}
		p.document(js)
	}
}

// splitDocuments calls f for every document of a YAML stream that has content,
// with surrounding space removed, and the line on which the content starts. A
// line that begins with "---" or "..." always separates: YAML allows it
// nowhere inside a document.
func splitDocuments(data []byte, f func(text []byte, line int)) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	start, startLine := 0, 1
	emit := func(end int) {
		text := data[start:end]
		trimmed := bytes.TrimLeft(text, "\r\n")
		if hasContent(text) {
			f(bytes.TrimRight(trimmed, " \r\n"), startLine+bytes.Count(text[:len(text)-len(trimmed)], []byte("\n")))
		}
	}
	for pos, line := 0, 1; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if isSeparator(data[pos:end]) {
			emit(pos)
			start, startLine = pos+3, line // text may follow on the same line
		}
		pos = end
	}
	emit(len(data))
}

func isSeparator(line []byte) bool {
	if !bytes.HasPrefix(line, []byte("---")) && !bytes.HasPrefix(line, []byte("...")) {
		return false
	}
	return len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0
}

// hasContent reports whether there is more than space, comments and
// directives.
func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return true
		}
	}
	return false
}

// yamlToJSON converts one document. Keys that appear twice are an error: one
// of the two would be lost without a word.
func yamlToJSON(text []byte) (js []byte, err error) {
	// The YAML library turns only its own panics into errors. A document of
	// the user must not be able to find another one.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: cannot be parsed: %v", r)
		}
	}()
	return yaml.YAMLToJSONStrict(text)
}

var lineNumber = regexp.MustCompile(`\bline (\d+)`)

// onLines makes the line numbers in an error of the YAML library, which are
// those of the document, the file's.
func onLines(err error, offset int) error {
	if offset == 0 {
		return err
	}
	return errors.New(lineNumber.ReplaceAllStringFunc(err.Error(), func(s string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(s, "line "))
		if err != nil {
			return s
		}
		return "line " + strconv.Itoa(n+offset)
	}))
}
