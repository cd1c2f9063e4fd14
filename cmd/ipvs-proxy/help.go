package main

import (
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

// readable has a command and those below it print their help in as many columns as a terminal has.
func readable(root *cobra.Command) {
	cobra.AddTemplateFunc("inColumns", inColumns)
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags.FlagUsages", ".InheritedFlags.FlagUsages"} {
		usage = strings.ReplaceAll(usage, flags, flags+"Wrapped 100")
	}
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(`{{with (or .Long .Short)}}{{. | inColumns}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}`)
}

// inColumns breaks the paragraphs of a text into lines anew.
func inColumns(text string) string {
	var out []string
	for _, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(paragraph, " ") { // it has lines of its own
			out = append(out, paragraph)
			continue
		}
		var b strings.Builder
		column := 0
		for word := range strings.FieldsSeq(paragraph) {
			n := utf8.RuneCountInString(word)
			switch {
			case column == 0:
			case column+1+n > inspect.Width:
				b.WriteByte('\n')
				column = 0
			default:
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += n
		}
		out = append(out, b.String())
	}
	return strings.Join(out, "\n\n")
}
