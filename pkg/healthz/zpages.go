package healthz

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"
)

// /flagz and /statusz (KEP-4828, KEP-4827), as kube-proxy 1.36 serves them: text for people, and JSON for who asks for
// a version of it. Upstream's own are a part of k8s.io/apiserver, which brings etcd's and gRPC's clients with it: too
// much for two pages. YAML and CBOR are left out.

const zGroup = "config.k8s.io"

type flagzPage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Flags             map[string]string `json:"flags,omitempty"`
}

type statuszPage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	StartTime         metav1.Time `json:"startTime"`
	UptimeSeconds     int64       `json:"uptimeSeconds"`
	GoVersion         string      `json:"goVersion"`
	BinaryVersion     string      `json:"binaryVersion"`
	Paths             []string    `json:"paths"`
}

func typeMeta(kind, version string) metav1.TypeMeta {
	return metav1.TypeMeta{Kind: kind, APIVersion: zGroup + "/" + version}
}

func zHeader(page string) string {
	return "\n" + component + " " + page + "\nWarning: This endpoint is not meant to be machine parseable, " +
		"has no formatting compatibility guarantees and is for debugging purposes only.\n"
}

func flagz(flags map[string]string) http.Handler {
	text := zHeader("flagz")
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		text += name + "=" + flags[name] + "\n"
	}
	return zPage("Flagz", func() string { return text }, func(version string) any {
		return flagzPage{typeMeta("Flagz", version), metav1.ObjectMeta{Name: component}, flags}
	})
}

func statusz(binary string, listed []string) http.Handler {
	start := time.Now()
	if at, err := metrics.GetProcessStart(); err == nil {
		start = time.Unix(int64(at), 0)
	}
	tops := topsOf(listed)
	text := func() string {
		up := int64(time.Since(start).Seconds())
		return fmt.Sprintf("%s\nStarted= %s\nUp= %d hr %02d min %02d sec\nGo version= %s\nBinary version= %s\n\nPaths= %s\n", zHeader("statusz"),
			start.Format(time.UnixDate), up/3600, up/60%60, up%60, runtime.Version(), binary, strings.Join(tops, " "))
	}
	return zPage("Statusz", text, func(version string) any {
		return statuszPage{typeMeta("Statusz", version), metav1.ObjectMeta{Name: component}, metav1.Time{Time: start},
			max(0, int64(time.Since(start).Seconds())), runtime.Version(), binary, tops}
	})
}

// topsOf lists the first parts of paths, sorted.
func topsOf(listed []string) (tops []string) {
	for _, path := range listed {
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		tops = append(tops, "/"+first)
	}
	slices.Sort(tops)
	return slices.Compact(tops)
}

// zPage serves a page in the first form that the client accepts and that there is.
func zPage(kind string, text func() string, object func(version string) any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		accept := r.Header.Get("Accept")
		if strings.TrimSpace(accept) == "" {
			accept = "text/plain"
		}
		for part := range strings.SplitSeq(accept, ",") {
			media, params, err := mime.ParseMediaType(part)
			switch {
			case err != nil:
			case media == "text/plain" || media == "text/*" || media == "*/*":
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				_, _ = fmt.Fprint(w, text())
				return
			case media == "application/json" && params["g"] == zGroup && params["as"] == kind && (params["v"] == "v1beta1" || params["v"] == "v1alpha1"):
				if params["v"] == "v1alpha1" {
					w.Header().Set("Warning", fmt.Sprintf("299 - %q", "This version of the "+strings.ToLower(kind)+" endpoint is deprecated. Please use a newer version."))
				}
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(object(params["v"])) // who asked may be gone
				return
			}
		}
		http.Error(w, "only the following media types are accepted: text/plain, application/json;g="+zGroup+";v=v1beta1;as="+kind, http.StatusNotAcceptable)
	})
}
